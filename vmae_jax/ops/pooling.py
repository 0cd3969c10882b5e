"""Pooling of token grids by small windows that slide over time, height and width."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Window = Sequence[int]


def pooled_grid(grid: Sequence[int], stride: Window) -> tuple[int, int, int]:
    """Size of what pooling by an odd, padded kernel leaves of a grid: rounded up."""
    t, h, w = (-(-n // s) for n, s in zip(grid, stride, strict=True))
    return t, h, w


def conv_pool(x: jax.Array, kernel: jax.Array, stride: Window) -> jax.Array:
    """Convolves each channel with a filter of its own.

    Args:
      x: [B, T, H, W, C]; zeros beyond its borders.
      kernel: [kt, kh, kw, c], odd sizes; channels in groups of c side by side (heads) share it.
      stride: steps of the window along (T, H, W).

    Returns:
      [B, T', H', W', C] of x's dtype, T' = ceil(T / stride).
    """
    channels = x.shape[-1]
    filters = jnp.tile(kernel.astype(x.dtype), channels // kernel.shape[-1])[..., None, :]
    return jax.lax.conv_general_dilated(
        x,
        filters,
        window_strides=tuple(stride),
        padding=[(side // 2, side // 2) for side in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=channels,
    )


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
