"""What a model says of every video of a set: one pass, on all devices of all processes.

Each process decodes its part of each batch; what the model says of the whole batch comes back to
all of them. Rows that hold no video (the padding of the last batch, a video that cannot be read)
are marked and never counted, so results do not depend on how many devices or processes there are.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vmae_jax import distributed
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.errors import UserError
from vmae_jax.systems.base import Batch, Params, System, compute_copy

_CLIPS_A_DEVICE = 8

Rows = Mapping[str, np.ndarray]
# (params, batch) -> what is said of the batch, whole on every process; see `make_forward`.
Forward = Callable[[Params, Mapping[str, jax.Array]], Mapping[str, jax.Array]]


class EvaluationError(UserError, RuntimeError):
    """A set or a model that cannot be evaluated; says what to do."""


def as_tested(
    config: ConfigDict, *, manifest: str, root: str, views: tuple[int, int] | None = None
) -> ConfigDict:
    """The recipe with a test's data: nothing drawn, frames and crops as the released tests do.

    Args:
      config: the recipe; how frames are sampled, sizes and limits stay what they are.
      manifest: videos.
      root: folder of its paths; "": its own.
      views: (clips, crops) of each video; None: one, in the middle, the released validation.

    A video that cannot be read is left out and reported, never replaced, however many there are.

    Source: V2's released validation and test loaders (reference: videomae.md 5.3, V2 5.1).
    """
    config = config.copy_and_resolve_references().unlock()
    config.data.update(
        manifest=manifest,
        root=root,
        select="views" if views else "centre",
        views=views or config.data.views,
        crop="views",
        filter="bilinear",
        resize="host",
        randaugment=(),
        repeats=1,
        on_error="skip",
        max_error_rate=1.0,
        worker_videos=0,
    )
    return config.lock()


def open_pass(options: PipelineOptions, *, clips: int = 0, seed: int = 0) -> ClipPipeline:
    """This process's part of one pass over the videos.

    Args:
      options: what is read and how.
      clips: of a batch over all devices, about; it is rounded up until devices and processes can
        share it evenly. 0: 8 for each device.
      seed: of what is drawn, if anything is.
    """
    processes = jax.process_count()
    clips = clips or _CLIPS_A_DEVICE * jax.device_count()
    step = math.lcm(math.lcm(jax.device_count(), options.clips) // options.clips, processes)
    return ClipPipeline(
        options,
        batch_videos=math.ceil(clips / (options.clips * step)) * step,
        seed=seed,
        process_index=jax.process_index(),
        process_count=processes,
        once=True,
    )


def make_forward(
    system: System, function: Callable[[Params, Batch], Mapping[str, jax.Array]]
) -> Forward:
    """Jits `function`, pure `(params, batch) -> {name: [rows, ...]}`, for `Pass.rows`.

    Float32 parameters are cast to the system's compute dtype inside. Make it once and use it for
    many passes: it is compiled in the first.
    """

    @jax.jit
    def forward(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        said = dict(function(compute_copy(params, system.compute_dtype), batch))
        return everywhere(said | {name: batch[name] for name in ("index", "label")})

    return forward


def everywhere(tree: Any) -> Any:
    """Inside jit: asks for arrays whole on every device, so that every process can read them."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, P())


class Pass:
    """One pass over the videos of a pipeline. All processes must take the same.

    Attributes:
      pipeline: a single pass; see `open_pass`.
      failures: once the pass is over: videos that could not be used, record -> reason, of all
        processes.
    """

    def __init__(self, pipeline: ClipPipeline) -> None:
        self.pipeline = pipeline
        self.failures: dict[int, str] = {}

    def rows(self, forward: Forward, params: Params) -> Iterator[Rows]:
        """Yields what is said of each global batch, with its "index" (-1: no video) and "label".

        Two batches are on the devices at a time.

        Args:
          forward: see `make_forward`.
          params: on the devices of the mesh that is set, if one is.

        Raises:
          EvaluationError: another process could not go on.
          PipelineError, VideoError: this one could not.
        """
        waiting: list[Mapping[str, jax.Array]] = []
        for arrays in self._batches():
            waiting.append(forward(params, _placed(arrays)))
            if len(waiting) == 2:
                yield jax.device_get(waiting.pop(0))
        for said in waiting:
            yield jax.device_get(said)
        self.failures = _of_all(self.failures)

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """All batches of this process. One that fails goes on with empty ones: others wait."""
        error = None
        for _ in range(self.pipeline.steps_per_epoch):
            arrays = None
            if error is None:
                try:
                    batch = next(self.pipeline)
                    self.failures |= {f.record: f.reason for f in batch.failures}
                    arrays = batch.arrays
                except Exception as caught:
                    if jax.process_count() == 1:
                        raise
                    error = caught
            yield self.pipeline.empty() if arrays is None else arrays
        if not distributed.all_agree(error is None):
            raise error or EvaluationError(
                "another process could not read its part of the videos, and says why in its log"
            )


def _placed(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return {name: jnp.asarray(array) for name, array in arrays.items()}
    layout = NamedSharding(mesh, P(mesh.axis_names))
    return {
        name: jax.make_array_from_process_local_data(layout, array)
        for name, array in arrays.items()
    }


def _of_all(failures: Mapping[int, str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for text in distributed.gathered_texts(json.dumps(failures)):
        found |= {int(record): reason for record, reason in json.loads(text).items()}
    return dict(sorted(found.items()))
