"""A stack of equal blocks: parameters on a leading `layers` axis, run by scan or unrolled."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from vmae_jax.models.layers import SAVED_NAMES, Block, StackOptions
from vmae_jax.ops.drop_path import drop_path_rates
from vmae_jax.ops.keys import stream
from vmae_jax.variants import StackSpec


def build_stack(spec: StackSpec, options: StackOptions, *, rngs: nnx.Rngs) -> Block:
    """One `Block` whose parameters are those of `spec.depth` blocks, each [depth, ...].

    It is a container: call it through `run_stack` only.
    """

    def build(rngs: nnx.Rngs) -> Block:
        return Block(spec.width, spec.heads, spec.mlp_ratio, options, rngs=rngs)

    return stacked(build, spec.depth, rngs=rngs)


def stacked(build: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose parameters are those of `depth` equal ones, each [depth, ...].

    Raises:
      ValueError: of none.
    """
    if depth < 1:
        raise ValueError(f"a stack needs at least one block, got depth={depth}")

    def keyed(key: jax.Array) -> nnx.Module:
        return build(nnx.Rngs(params=key))

    keys = jax.random.split(rngs.params(), depth)
    if depth == 1:  # the same, built once instead of twice
        graphdef, state = nnx.split(keyed(keys[0]))
        return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[None], state))
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: keyed(jax.random.key(0))))
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(keyed(key)))(keys))


def run_stack(
    blocks: nnx.Module,
    x: jax.Array,
    options: StackOptions,
    *,
    keys: jax.Array | None = None,
    layers: int | None = None,
    taps: tuple[int, ...] = (),
    first: int = 0,
    total: int | None = None,
) -> jax.Array:
    """Runs the blocks of `build_stack` one after the other.

    Args:
      blocks: from `stacked`; called as `block(x)` or, with stochastic depth, `block(x, rate=rate,
        keys=keys)`.
      x: [B, N, D].
      options: those the blocks were built with.
      keys: typed PRNG keys [B], one per clip, for stochastic depth; None: evaluation mode.
      layers: how many of the blocks, from the first; None: all, or as many as `taps` ask for.
      taps: blocks whose outputs are wanted, counted from 1 and ascending; (): the last one's.
      first, total: which block of how many in the network the stack begins with, if it is one of
        several; rates of stochastic depth and random draws are theirs.

    Returns:
      [B, N, D], or what the blocks make of it. With taps [K, B, N, D], and no output of another
      block is kept.

    Raises:
      ValueError: there are not so many, or taps that do not ascend.
    """
    graphdef, params = nnx.split(blocks)
    depth = jax.tree.leaves(params)[0].shape[0]
    if taps:
        if layers is not None or list(taps) != sorted(set(taps)):
            raise ValueError(f"taps={taps} must ascend, and say without layers how far to go")
        _check_layer(taps[0], depth)
        layers = taps[-1]
    rates = jnp.asarray(drop_path_rates(options.drop_path, total or depth))[first : first + depth]
    indices = jnp.arange(first, first + depth)
    inputs = (params, rates, indices)
    if layers is not None:
        _check_layer(layers, depth)
        inputs, depth = jax.tree.map(lambda leaf: leaf[:layers], inputs), layers
    dropping = keys is not None and options.drop_path > 0

    def body(x, layer):
        params, rate, index = layer
        block = nnx.merge(graphdef, gathered(params))
        if not dropping:
            return block(x), None
        return block(x, rate=rate, keys=stream(keys, index)), None

    scan = options.scan and depth > 1
    body = _with_remat(body, options.remat, scan=scan)
    if scan:
        return _tapped(body, x, inputs, taps) if taps else jax.lax.scan(body, x, inputs)[0]
    outputs = []
    for i in range(depth):
        x, _ = body(x, jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
        outputs.append(x)
    return jnp.stack([outputs[tap - 1] for tap in taps]) if taps else x


def _tapped(body, x: jax.Array, inputs, taps: tuple[int, ...]) -> jax.Array:
    """Scans `body`, compiled once, and keeps what comes out of the blocks `taps`."""
    # Every block writes into the place of the next tap, and so the tap itself writes last.
    places = jnp.searchsorted(jnp.asarray(taps), jnp.arange(1, taps[-1] + 1))

    def keep(carry, layer):
        x, kept = carry
        inputs, place = layer
        x, _ = body(x, inputs)
        return (x, jax.lax.dynamic_update_index_in_dim(kept, x, place, axis=0)), None

    kept = jnp.zeros((len(taps), *x.shape), x.dtype)
    return jax.lax.scan(keep, (x, kept), (inputs, places))[0][1]


def block_of(blocks: Block, layer: int) -> Block:
    """One block of `build_stack`, counted from 1, with its own parameters: to be called as it is.

    Raises:
      ValueError: there are not so many.
    """
    graphdef, params = nnx.split(blocks)
    _check_layer(layer, jax.tree.leaves(params)[0].shape[0])
    return nnx.merge(graphdef, gathered(jax.tree.map(lambda leaf: leaf[layer - 1], params)))


def _check_layer(layer: int, depth: int) -> None:
    if not 1 <= layer <= depth:
        raise ValueError(f"layer {layer} of a stack of {depth} blocks; count from 1")


def gathered(params):
    """Asks for replicated copies of sharded parameters, if a mesh is set.

    An explicit all-gather of one layer; left alone, the TPU compiler turns matmuls with sharded
    weights into windowed loops, which are slower and compile much longer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return params
    replicated = PartitionSpec()
    return jax.tree.map(lambda p: jax.lax.with_sharding_constraint(p, replicated), params)


def _with_remat(body, remat: str, *, scan: bool):
    if remat == "none":
        return body
    # Inside scan the loop itself keeps XLA from undoing the recomputation.
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=not scan)
    if remat == "full":
        return checkpoint(body)
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)
    return checkpoint(body, policy=policy)
