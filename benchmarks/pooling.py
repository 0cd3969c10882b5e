r"""Times ways to pool tokens and to score relative positions, forward and backward, in one run.

    JAX_PLATFORMS=cpu python benchmarks/pooling.py --network=S
    JAX_PLATFORMS=cpu python benchmarks/pooling.py --network=L --dtype=bfloat16

Every pooling and every pair of axes that occurs in the network is timed with every way, in turn;
the last row of a table is the sum over all blocks. Prints processor time on CPUs, which other work
on the machine hardly changes, else time that passes.
"""

import argparse
import collections
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.models.mvit import BlockShape, block_shapes
from vmae_jax.ops.pooling import depthwise_conv, pooled_grid, shifted_sum
from vmae_jax.ops.relative import relative_scores, relative_weights, table_rows
from vmae_jax.variants import MVIT_VARIANTS

SECONDS = 0.3  # a program is repeated for so long, at least once
KERNEL = (3, 3, 3)


def _places(x, stride):
    """What each of the 27 places of the window sees, (t, h, w) and [B, T', H', W', C]."""
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
    for place in np.ndindex(KERNEL):
        ends = [at + n for at, n in zip(place, x.shape[1:4], strict=True)]
        start, limit = (0, *place, 0), (x.shape[0], *ends, x.shape[-1])
        yield place, jax.lax.slice(padded, start, limit, (1, *stride, 1))


def strided_slices(x, kernel, stride):
    """27 strided slices and one expression; the compiler fuses what it likes."""
    total = sum(seen.astype(jnp.float32) * kernel[place] for place, seen in _places(x, stride))
    return total.astype(x.dtype)


def windows(x, kernel, stride):
    """All windows written out, then one product for each channel."""
    seen = jnp.stack([seen for _, seen in _places(x, stride)], axis=-2)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(x.dtype)
    return jnp.einsum("bthwkc,kc->bthwc", seen, weights)


def banded_matrices(x, kernel, stride):
    """Along rows of the grid a product with a banded matrix for each channel; 9 shifts of them."""
    width, wide = x.shape[3], pooled_grid(x.shape[1:4], stride)[2]
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0)])
    rows = []
    for t, h in np.ndindex(KERNEL[:2]):
        ends = (t + x.shape[1], h + x.shape[2])
        rows.append(padded[:, t : ends[0] : stride[0], h : ends[1] : stride[1]])
    seen = jnp.stack(rows, axis=3)
    step = np.arange(width)[:, None] + 1 - stride[2] * np.arange(wide)
    bands = (step == np.arange(KERNEL[2])[:, None, None]).astype(np.float32)
    filters = kernel.reshape(-1, *kernel.shape[2:])  # [kt * kh, kw, C]
    matrices = jnp.einsum("skc,kvw->svwc", filters, bands).astype(x.dtype)
    return jnp.einsum("bthsvc,svwc->bthwc", seen, matrices)


def diagonal_matrices(x, kernel, stride):
    """A full convolution inside each head, whose matrices are diagonal."""
    channels = kernel.shape[-1]
    batch, heads = x.shape[0], x.shape[-1] // channels
    apart = jnp.moveaxis(x.reshape(*x.shape[:-1], heads, channels), -2, 1)
    pooled = jax.lax.conv_general_dilated(
        apart.reshape(-1, *apart.shape[2:]),
        (kernel[..., None] * jnp.eye(channels)).astype(x.dtype),
        window_strides=stride,
        padding=[(1, 1)] * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    pooled = jnp.moveaxis(pooled.reshape(batch, heads, *pooled.shape[1:]), 1, -2)
    return pooled.reshape(*pooled.shape[:-2], -1)


def of_each_channel(pool):
    """`pool` with the filter of a head repeated for all heads."""
    return lambda x, kernel, stride: pool(
        x, jnp.tile(kernel, x.shape[-1] // kernel.shape[-1]), stride
    )


POOLS = {
    "XLA's depth-wise convolution": of_each_channel(depthwise_conv),
    "loop over shifts": of_each_channel(shifted_sum),
    "27 strided slices": of_each_channel(strided_slices),
    "windows, one product": of_each_channel(windows),
    "banded matrices": of_each_channel(banded_matrices),
    "diagonal matrices": diagonal_matrices,
}


def product_then_one_hot(q, table, *, axis, keys):
    """Scores with every row of the table, of which each key takes its own by one-hot product."""
    weights = jnp.asarray(relative_weights(q.shape[axis], keys, table.shape[0]), q.dtype)
    rows = jnp.einsum("bthwnc,rc->bthwnr", q, table.astype(q.dtype))
    return jnp.einsum(f"bthwnr,{'thw'[axis - 1]}kr->bthwnk", rows, weights)


def gathered(q, table, *, axis, keys):
    """Rows gathered by index."""
    index = relative_weights(q.shape[axis], keys, table.shape[0]).argmax(-1)
    return jnp.einsum(f"bthwnc,{'thw'[axis - 1]}kc->bthwnk", q, table.astype(q.dtype)[index])


SCORES = {
    "rows mixed by matrix": relative_scores,
    "rows gathered": gathered,
    "scores, then one-hot": product_then_one_hot,
}


def measure(fn: Callable[..., jax.Array], *args: jax.Array) -> tuple[float, float]:
    """Seconds to compile the gradients of a sum of squares, and to run them (the shortest run)."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def loss(*args):
        return jnp.square(fn(*args).astype(jnp.float32)).sum()

    start = clock()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile()
    compiling, runs = clock() - start, []
    while not runs or sum(runs) < SECONDS:
        start = clock()
        jax.block_until_ready(compiled(*args))
        runs.append(clock() - start)
    return compiling, min(runs)


def table(
    title: str,
    ways: Mapping[str, Callable[..., Any]],
    cases: Iterable[tuple[str, int, Mapping[str, Any], tuple[jax.Array, ...]]],
) -> None:
    """Prints a row for each case as it is done: (name, times in a network, options, arrays)."""
    print(f"\n| {title}, ms | times | {' | '.join(ways)} |")
    print("|---|---|" + "---|" * len(ways), flush=True)
    sums, compiling = np.zeros(len(ways)), np.zeros(len(ways))
    for name, times, options, arrays in cases:
        figures = [measure(functools.partial(way, **options), *arrays) for way in ways.values()]
        compile_s, run_s = np.array(figures).T
        sums, compiling = sums + times * run_s, compiling + compile_s
        print(f"| {name} | {times} |{_cells(1e3 * run_s)}", flush=True)
    print(f"| whole network | |{_cells(1e3 * sums)}")
    print(f"| to compile them, s | |{_cells(compiling)}", flush=True)


def _cells(figures: np.ndarray) -> str:
    return "".join(f" {figure:.3g} |" if figure < 100 else f" {figure:.0f} |" for figure in figures)


def poolings(shapes: Iterable[BlockShape], clips: int, dtype: str) -> Iterable[tuple]:
    """The cases of pooling, one for each size that occurs."""
    counts = collections.Counter()
    for shape in shapes:
        channels = shape.inner // shape.heads
        for stride in (shape.stride, shape.kv_stride, shape.kv_stride):
            counts[(*shape.grid, shape.inner), channels, stride] += 1
    for (size, channels, stride), times in counts.items():
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (clips, *size)).astype(dtype)
        kernel = jax.random.normal(keys[1], (*KERNEL, channels))
        name = f"{' x '.join(map(str, size))}, stride {' x '.join(map(str, stride))}"
        yield name, times, {"stride": stride}, (x, kernel)


def scores(shapes: Iterable[BlockShape], clips: int, dtype: str) -> Iterable[tuple]:
    """The cases of relative positions, one for each size that occurs."""
    counts = collections.Counter()
    for shape in shapes:
        for axis in (1, 2, 3):
            of_heads = shape.heads, shape.inner // shape.heads
            counts[(*shape.grid_out, *of_heads), axis, shape.kv_grid[axis - 1]] += 1
    for (size, axis, num_keys), times in counts.items():
        keys = jax.random.split(jax.random.key(0))
        q = jax.random.normal(keys[0], (clips, *size)).astype(dtype)
        rows = jax.random.normal(keys[1], (table_rows(size[axis - 1], num_keys), size[-1]))
        name = f"{' x '.join(map(str, size))}, {'thw'[axis - 1]}, {num_keys} keys"
        yield name, times, {"axis": axis, "keys": num_keys}, (q, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=MVIT_VARIANTS, default="S")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--grid", default="8x56x56", help="of the stem; default: 8x56x56")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", choices=["pooling", "positions"], help="default: both")
    args = parser.parse_args()
    t, h, w = map(int, args.grid.split("x"))
    shapes = block_shapes(MVIT_VARIANTS[args.network], (t, h, w))
    device = jax.devices()[0].device_kind
    print(f"MViTv2-{args.network}, clips: {args.clips}, {args.dtype}, {device}")
    if args.only != "positions":
        table("pooling", POOLS, poolings(shapes, args.clips, args.dtype))
    if args.only != "pooling":
        table("scores of an axis", SCORES, scores(shapes, args.clips, args.dtype))


if __name__ == "__main__":
    main()
