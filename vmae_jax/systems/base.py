"""What a paper must provide so that the one train step and the one loop can run it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vmae_jax.models.stack import gathered
from vmae_jax.ops.losses import Ratio
from vmae_jax.ops.patches import Grid

Params = Any
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a batch.

    Attributes:
      shape: without the leading axis.
      dtype: by name.
      clips: clips that one row serves; a batch of B clips has B / clips rows of it.
    """

    shape: tuple[int, ...]
    dtype: str
    clips: int = 1


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What a network makes of whole clips: for probes, features and everything that asks no more.

    A batch needs only `video`, uint8 [B, T, H, W, C], whatever the system trains on. All functions
    are pure and in evaluation mode; parameters may be float32 or a `compute_copy`.

    Attributes:
      depth: number of blocks; layers count from 1 to it.
      width: layer -> D of its tokens.
      grid: layer -> tokens along (time, height, width).
      tokens: `(params, batch, layer) -> float32 [B, N, D]` in raster order, without class tokens;
        those of the last layer after the final norm, if the model has one.
      pooled: `(params, batch) -> float32 [B, D]`, what the model's own head sees; of a model
        without a head the mean of its last tokens.
      attention: `(params, batch, layer) -> float32 [B, heads, N, N]`, how much each token (row)
        takes of each other in a layer; rows sum to one. None where layers attend otherwise.
    """

    depth: int
    width: Callable[[int], int]
    grid: Callable[[int], Grid]
    tokens: Callable[[Params, Batch, int], jax.Array]
    pooled: Callable[[Params, Batch], jax.Array]
    attention: Callable[[Params, Batch, int], jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class System:
    """A paper's method as pure functions.

    Attributes:
      name: the system's name in configs.
      init: `key -> params`, nested dict of float32 arrays.
      targets: `(frozen, batch, keys) -> batch'`; adds what is to be predicted. Runs inside the
        jitted step, under `stop_gradient`.
      loss: `(params, batch', keys, train) -> (Ratio, {name: Ratio})`.
      batch_spec: arrays of a batch that the system consumes.
      compute_dtype: dtype of the matrix products.
      macs: forward multiply-accumulates per clip, by part; "teacher" is what the frozen tree costs.
      train_flops: floating-point operations of one training step per clip (matmuls only, forward
        and backward, no rematerialisation).
      choices: what "auto" fields of the config came to on the chip, in words for reports.
      encoder: the network on whole clips; every paper's system has one.
      together: adjacent clips of a batch that a micro-batch must not part.
      logits: `(params, batch) -> float32 [B, K]` of whole clips, in evaluation mode; None where
        nothing is classified.
      init_frozen: `key -> frozen` for a tree that is never trained (a teacher), or None. Its
        kernels are kept in the compute dtype.
      reconstruct: `(params, frozen, batch, keys) -> {label: video}` with videos `[B, T, H, W, C]`
        float32 in [0, 1], for systems whose predictions can be drawn; else None.
    """

    name: str
    init: Callable[[jax.Array], Params]
    targets: Callable[[Params, Batch, jax.Array], Batch]
    loss: Callable[[Params, Batch, jax.Array, bool], tuple[Ratio, dict[str, Ratio]]]
    batch_spec: Mapping[str, ArraySpec]
    compute_dtype: str
    macs: Mapping[str, float]
    train_flops: float
    encoder: Encoder | None = None
    together: int = 1
    logits: Callable[[Params, Batch], jax.Array] | None = None
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    init_frozen: Callable[[jax.Array], Params] | None = None
    reconstruct: Callable[[Params, Params, Batch, jax.Array], dict[str, jax.Array]] | None = None


def clip_keys(key: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
    """One key per clip, from the run's key, the step and the clip's index in its epoch.

    Args:
      key: typed PRNG key of the run.
      step: scalar int32.
      index: int32 [B].

    Returns:
      typed keys [B]; they depend neither on devices, processes nor batch layout.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, step), index)


def compute_copy(params: Params, dtype: str) -> Params:
    """Casts the matrices of `params` to the compute dtype; vectors keep float32.

    Done once per step, before any gather across devices, so that half the bytes travel. Matrices
    outside of stacks are gathered here; those of a stack, layer by layer, where it runs.
    """

    def gather(names: list[str], leaf: jax.Array) -> jax.Array:
        return leaf if "blocks" in names else gathered(leaf)

    return _map_kernels(lambda names, leaf: gather(names, leaf.astype(dtype)), params)


def frozen_copy(params: Params, dtype: str) -> Params:
    """Casts the matrices of a tree that is never trained to the dtype it is computed in."""
    return _map_kernels(lambda _, leaf: leaf.astype(dtype), params)


def _map_kernels(change: Callable[[list[str], jax.Array], jax.Array], params: Params) -> Params:
    def visit(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(part, "key", None) for part in path]
        return change(names, leaf) if names[-1] == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(visit, params)
