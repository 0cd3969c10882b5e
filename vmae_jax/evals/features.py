"""Features of a whole set, kept in the memory of every host: what probes learn from."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.evals.passes import EvaluationError, Forward, Pass, make_forward
from vmae_jax.systems.base import Batch, Params, System

KINDS = ("pooled", "tokens")
MAX_GIB = 16.0


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set's clips, in its order.

    Attributes:
      pooled: float32 [n, D], what the model's head sees, or would see; None where not asked for.
      tokens: bfloat16 [n, N, D], the last layer's; None where not asked for.
      labels: int32 [n].
      missing: int32 [m], labels of videos that could not be read (-1: unknown).
    """

    pooled: np.ndarray | None
    tokens: np.ndarray | None
    labels: np.ndarray
    missing: np.ndarray


def make_extract(system: System, kinds: Sequence[str]) -> Forward:
    """The compiled part of `read_features`.

    Args:
      system: whose encoder it is.
      kinds: some of `KINDS`.
    """
    encoder = system.encoder

    def extract(params: Params, batch: Batch) -> dict[str, jax.Array]:
        found = {}
        if "pooled" in kinds:
            found["pooled"] = encoder.pooled(params, batch).astype(jnp.float32)
        if "tokens" in kinds:
            found["tokens"] = encoder.tokens(params, batch, encoder.depth).astype(jnp.bfloat16)
        return found

    return make_forward(system, extract)


def check_room(system: System, kinds: Sequence[str], *, clips: int, max_gib: float) -> None:
    """Raises EvaluationError if features of so many clips take more memory than a host may give.

    Args:
      system: whose encoder it is.
      kinds: some of `KINDS`.
      clips: how many.
      max_gib: that they may take on each host.
    """
    encoder = system.encoder
    width, tokens = encoder.width(encoder.depth), math.prod(encoder.grid(encoder.depth))
    each = {"pooled": 4 * width, "tokens": 2 * tokens * width}
    wanted = clips * sum(each[kind] for kind in kinds) / 2**30
    if wanted > max_gib:
        raise EvaluationError(
            f"the features of {clips} clips take {wanted:.3g} GiB on each host, the limit is "
            f"{max_gib:g} GiB; give a shorter list, leave out the attentive probe, which keeps all "
            "tokens, or raise the limit"
        )


def read_features(extract: Forward, params: Params, pipeline: ClipPipeline) -> Features:
    """Features of every clip of a pass, on every process; `check_room` says what they take.

    Args:
      extract: see `make_extract`.
      params: on the devices of the mesh that is set, if one is.
      pipeline: a single pass; see `passes.open_pass`. It is not closed.

    Raises:
      EvaluationError: a clip without a label, or nothing can be read.
    """
    source, reading = pipeline.source, Pass(pipeline)
    kept: dict[str, np.ndarray] = {}
    filled = 0
    for rows in reading.rows(extract, params):
        if not kept:
            clips = len(rows["index"]) // pipeline.batch_videos * len(source)
            kept = {name: np.empty((clips, *x.shape[1:]), x.dtype) for name, x in rows.items()}
        present = rows["index"] >= 0
        stop = filled + int(present.sum())
        for name, values in rows.items():
            kept[name][filled:stop] = values[present]
        filled = stop
    labels = kept["label"][:filled]
    if not filled or labels.min() < 0:
        raise EvaluationError(
            f"{source.name(0)} and the other videos beside it have no labels, or none can be read; "
            "a probe needs labelled videos"
        )
    return Features(
        pooled=kept["pooled"][:filled] if "pooled" in kept else None,
        tokens=kept["tokens"][:filled] if "tokens" in kept else None,
        labels=labels,
        missing=np.array([source.label(record) for record in reading.failures], np.int32),
    )
