r"""Times ways to pool tokens and to score relative positions, forward and backward, in one run.

    JAX_PLATFORMS=cpu python benchmarks/pooling.py

Sizes are those of MViTv2-S 16x4 in its third stage, for two clips. Prints processor time on CPUs,
which other work on the machine hardly changes, else time that passes.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.ops.pooling import depthwise_conv, shifted_sum
from vmae_jax.ops.relative import relative_scores, relative_weights

CLIPS, GRID, WIDTH, HEAD, KEYS = 2, (8, 14, 14), 384, 96, 7
REPEATS = 5


def unrolled_shifts(x, kernel, stride):
    """27 strided slices and one expression; the compiler fuses what it likes."""
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
    total = 0.0
    for t, h, w in np.ndindex(3, 3, 3):
        ends = [at + n for at, n in zip((t, h, w), x.shape[1:4], strict=True)]
        start, limit = (0, t, h, w, 0), (x.shape[0], *ends, x.shape[-1])
        seen = jax.lax.slice(padded, start, limit, (1, *stride, 1))
        total += seen.astype(jnp.float32) * kernel[t, h, w]
    return total.astype(x.dtype)


def matrices(x, kernel, stride):
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
    return lambda x, kernel, stride: pool(x, jnp.tile(kernel, x.shape[-1] // HEAD), stride)


POOLS = {
    "XLA's depth-wise convolution": of_each_channel(depthwise_conv),
    "loop over shifted sums": of_each_channel(shifted_sum),
    "27 strided slices": of_each_channel(unrolled_shifts),
    "diagonal matrices": matrices,
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
    "rows mixed by matrix, then scores": relative_scores,
    "rows gathered, then scores": gathered,
    "scores, then rows by one-hot matrix": product_then_one_hot,
}


def timed(label, fn, *args):
    """Prints seconds to compile and milliseconds to run the gradients of a sum of squares."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def loss(*args):
        return jnp.square(fn(*args).astype(jnp.float32)).sum()

    start = clock()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile()
    compiling = clock() - start
    jax.block_until_ready(compiled(*args))
    start = clock()
    for _ in range(REPEATS):
        jax.block_until_ready(compiled(*args))
    print(f"{label:64s} {compiling:6.2f} s {(clock() - start) / REPEATS * 1e3:9.1f} ms", flush=True)


def main():
    keys = jax.random.split(jax.random.key(0), 4)
    print(f"{jax.devices()[0].device_kind}: to compile, to run")
    for dtype in ("float32", "bfloat16"):
        x = jax.random.normal(keys[0], (CLIPS, *GRID, WIDTH)).astype(dtype)
        kernel = jax.random.normal(keys[1], (3, 3, 3, HEAD))
        for stride in ((1, 1, 1), (1, 2, 2)):
            for name, pool in POOLS.items():
                pooled = functools.partial(pool, stride=stride)
                timed(f"{dtype}, stride {stride}: {name}", pooled, x, kernel)
        q = jax.random.normal(keys[2], (CLIPS, *GRID, WIDTH // HEAD, HEAD)).astype(dtype)
        table = jax.random.normal(keys[3], (2 * GRID[1] - 1, HEAD))
        for name, score in SCORES.items():
            timed(f"{dtype}: {name}", functools.partial(score, axis=2, keys=KEYS), q, table)


if __name__ == "__main__":
    main()
