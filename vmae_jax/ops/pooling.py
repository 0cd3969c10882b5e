"""Pooling of token grids by small windows that slide over time, height and width."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Window = Sequence[int]


def pooled_grid(grid: Sequence[int], stride: Window) -> tuple[int, int, int]:
    """Size of what pooling by an odd, padded kernel leaves of a grid: rounded up."""
    t, h, w = (-(-n // s) for n, s in zip(grid, stride, strict=True))
    return t, h, w


def conv_pool(x: jax.Array, kernel: jax.Array, stride: Window) -> jax.Array:
    """Convolves each channel with a filter of its own.

    CPUs sum shifted copies, for which XLA's depth-wise convolution is slow there; the sum is taken
    in float32 in both.

    Args:
      x: [B, T, H, W, C]; zeros beyond its borders.
      kernel: [kt, kh, kw, c], odd sizes; channels in groups of c side by side (heads) share it.
      stride: steps of the window along (T, H, W); static.

    Returns:
      [B, T', H', W', C] of x's dtype, T' = ceil(T / stride).
    """
    return jax.lax.platform_dependent(
        x,
        jnp.tile(kernel, x.shape[-1] // kernel.shape[-1]),
        cpu=functools.partial(shifted_sum, stride=tuple(stride)),
        default=functools.partial(depthwise_conv, stride=tuple(stride)),
    )


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: Window) -> jax.Array:
    """XLA's own; arguments as those of `conv_pool`, with a filter for each channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype)[..., None, :],
        window_strides=stride,
        padding=[(side // 2, side // 2) for side in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted_sum(x: jax.Array, kernel: jax.Array, stride: Window) -> jax.Array:
    """The same, one place of the window after the other, which compiles to one short loop."""
    padded, places = _padded(x, kernel), _places(kernel)

    def add(total, place):
        offset, weight = place
        return total + _shifted(padded, offset, total.shape, stride) * weight, None

    shape = x.shape[0], *pooled_grid(x.shape[1:4], stride), x.shape[-1]
    total, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), places)
    return total.astype(x.dtype)


def _shifted_sum_fwd(x, kernel, stride):
    return shifted_sum(x, kernel, stride), (x, kernel)


def _shifted_sum_bwd(stride, saved, grad):
    x, kernel = saved
    grad, padded = grad.astype(jnp.float32), _padded(x, kernel)
    gaps = [(0, 0, 0), *((0, 0, step - 1) for step in stride), (0, 0, 0)]
    spread = jax.lax.pad(grad, np.float32(0), gaps)

    def add(total, place):
        offset, weight = place
        start = (0, *offset, 0)
        part = jax.lax.dynamic_slice(total, start, spread.shape)
        total = jax.lax.dynamic_update_slice(total, part + spread * weight, start)
        of_weight = (_shifted(padded, offset, grad.shape, stride) * grad).sum(axis=(0, 1, 2, 3))
        return total, of_weight

    zeros = jnp.zeros(padded.shape, jnp.float32)
    of_padded, of_weights = jax.lax.scan(add, zeros, _places(kernel))
    start = (0, *(side // 2 for side in kernel.shape[:3]), 0)
    of_x = jax.lax.dynamic_slice(of_padded, start, x.shape)
    return of_x.astype(x.dtype), of_weights.reshape(kernel.shape).astype(kernel.dtype)


shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


def _padded(x, kernel):
    return jnp.pad(x, [(0, 0), *((side // 2, side // 2) for side in kernel.shape[:3]), (0, 0)])


def _places(kernel):
    """Offset (t, h, w) of each place of the window, int32 [places, 3], and weights [places, C]."""
    offsets = np.indices(kernel.shape[:3], np.int32).reshape(3, -1).T
    return offsets, kernel.astype(jnp.float32).reshape(len(offsets), -1)


def _shifted(padded, offset, shape, stride):
    """What one place of the window sees: float32 of `shape`, every `stride`-th entry."""
    size = [(n - 1) * step + 1 for n, step in zip(shape[1:4], stride, strict=True)]
    seen = jax.lax.dynamic_slice(padded, (0, *offset, 0), (shape[0], *size, shape[-1]))
    return jax.lax.slice(seen, (0,) * 5, seen.shape, (1, *stride, 1)).astype(jnp.float32)


def max_pool(x: jax.Array, stride: Window) -> jax.Array:
    """The largest value of each channel around every `stride`-th place.

    Args:
      x: [B, T, H, W, C].
      stride: steps along (T, H, W); the window is one longer where it is more than 1.

    Returns:
      [B, T', H', W', C], T' = ceil(T / stride).

    Source: the released MViT's skip path.
    """
    window = [s + 1 if s > 1 else 1 for s in stride]
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *stride, 1),
        padding=[(0, 0), *((side // 2, side // 2) for side in window), (0, 0)],
    )
