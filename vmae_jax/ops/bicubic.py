"""Resampling of a line of samples as PyTorch does it: matrices, and pictures resized with them.

Half-pixel centres, borders repeated, no antialiasing; the cubic has the coefficient -0.75. Neither
`jax.image.resize` (-0.5, and antialiased where it shrinks) nor Pillow gives the same numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_A = -0.75


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """Weights of four neighbours, float64 [target, source], that make `target` samples."""
    return _matrix(source, target, _cubic)


def linear_matrix(source: int, target: int) -> np.ndarray:
    """The same of two neighbours, linear between them."""
    return _matrix(source, target, lambda distance: np.maximum(1 - distance, 0))


def resize_bicubic(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes pictures, rows and columns one after the other.

    Args:
      x: [..., H, W, C].
      height, width: of the result, in pixels; static.

    Returns:
      float32 [..., height, width, C].

    Source: `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, whose values
    (reference: umt.md, D1) it reproduces.
    """
    rows = jnp.asarray(bicubic_matrix(x.shape[-3], height), jnp.float32)
    columns = jnp.asarray(bicubic_matrix(x.shape[-2], width), jnp.float32)
    # A product in bfloat16 would cost more than the network that follows loses by it.
    return jnp.einsum(
        "hy,...yxc,wx->...hwc", rows, x.astype(jnp.float32), columns, precision="highest"
    )


def _matrix(source: int, target: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((target, source))
    for offset in range(-1, 3):
        column = first + offset
        inside = np.clip(column, 0, source - 1)
        np.add.at(weights, (np.arange(target), inside), kernel(np.abs(centre - column)))
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (_A + 2) * distance**3 - (_A + 3) * distance**2 + 1
    far = _A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
