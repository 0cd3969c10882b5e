"""Pooling of token grids by small windows that slide over time, height and width."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

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
    """The same, one place of the window after the other, which compiles to one short loop.

    A place sees every `stride`-th entry; entries are sorted by phase beforehand, so that neither
    pass touches others.
    """
    phases, places = _phases(x, kernel, stride), _places(kernel, stride)
    shape = 1, x.shape[0], *pooled_grid(x.shape[1:4], stride), x.shape[-1]

    def add(total, place):
        start, weight = place
        seen = jax.lax.dynamic_slice(phases, start, shape)
        return total + seen.astype(jnp.float32) * weight, None

    total, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), places)
    return total[0].astype(x.dtype)


def _shifted_sum_fwd(x, kernel, stride):
    return shifted_sum(x, kernel, stride), (x, kernel)


def _shifted_sum_bwd(stride, saved, grad):
    x, kernel = saved
    grad, phases = grad[None].astype(jnp.float32), _phases(x, kernel, stride)

    def add(total, place):
        start, weight = place
        part = jax.lax.dynamic_slice(total, start, grad.shape)
        total = jax.lax.dynamic_update_slice(total, part + grad * weight, start)
        seen = jax.lax.dynamic_slice(phases, start, grad.shape)
        return total, (seen.astype(jnp.float32) * grad).sum(axis=(0, 1, 2, 3, 4))

    zeros = jnp.zeros(phases.shape, jnp.float32)
    of_phases, of_weights = jax.lax.scan(add, zeros, _places(kernel, stride))
    t, h, w = stride
    of_padded = rearrange(of_phases, "(i j k) b t h w c -> b (t i) (h j) (w k) c", i=t, j=h, k=w)
    unpad = [
        (-before, -behind, 0) for before, behind, _ in _pads(x.shape, kernel.shape[:3], stride)
    ]
    of_x = jax.lax.pad(of_padded, np.float32(0), unpad)
    return of_x.astype(x.dtype), of_weights.reshape(kernel.shape).astype(kernel.dtype)


shifted_sum.defvjp(_shifted_sum_fwd, _shifted_sum_bwd)


def _phases(x, kernel, stride):
    """x with zeros around it, entries of equal place within a stride together.

    [st * sh * sw, B, T'', H'', W'', C]; T'' is as many strides as the window needs.
    """
    x = jax.lax.pad(x, np.zeros((), x.dtype), _pads(x.shape, kernel.shape[:3], stride))
    t, h, w = stride
    return rearrange(x, "b (t i) (h j) (w k) c -> (i j k) b t h w c", i=t, j=h, k=w)


def _pads(shape, window, stride):
    """As `jax.lax.pad` takes them; negative where no place sees the end of an axis."""
    pads = [(0, 0, 0)]
    for size, side, step in zip(shape[1:4], window, stride, strict=True):
        padded = (-(-size // step) + (side - 1) // step) * step
        pads.append((side // 2, padded - size - side // 2, 0))
    return [*pads, (0, 0, 0)]


def _places(kernel, stride):
    """Where in phases each place of the window begins, int32 [places, 6]; weights [places, C]."""
    offsets = np.indices(kernel.shape[:3], np.int32).reshape(3, -1)
    strides, within = np.divmod(offsets, np.array(stride, np.int32)[:, None])
    phase, zero = np.ravel_multi_index(within, stride), np.zeros(offsets.shape[1])
    starts = np.stack([phase, zero, *strides, zero], axis=1).astype(np.int32)
    return starts, kernel.astype(jnp.float32).reshape(len(starts), -1)


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
