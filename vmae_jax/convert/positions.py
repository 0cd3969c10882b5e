"""Learned position tables for other grids than they were trained on.

Fixed sinusoids need none of this: models compute them for the grid that they are given.
"""

import numpy as np

from vmae_jax.ops.patches import Grid

_CUBIC = -0.75  # PyTorch's coefficient; Keys' own is -0.5, which JAX uses


def resize_positions(table: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Interpolates a table: bicubic over height and width, slot by slot, then linear over time.

    Half-pixel centres, no antialiasing, borders repeated, as the released scripts resize. Tables
    of space or of time alone are grids of (1, h, w) and (t, 1, 1).

    Args:
      table: [t*h*w, D] of `source`, in raster order.
      source, target: tokens along (time, height, width).

    Returns:
      float32 [t*h*w, D] of `target`; computed in float64.

    Raises:
      ValueError: the table is not of `source`.
    """
    if table.ndim != 2 or table.shape[0] != np.prod(source):
        raise ValueError(f"a table of shape {table.shape} is not one of a grid {tuple(source)}")
    values = np.asarray(table, np.float64).reshape(*source, -1)
    for axis, kernel in ((1, _cubic), (2, _cubic), (0, _linear)):
        if source[axis] != target[axis]:
            weights = _weights(source[axis], target[axis], kernel)
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values.reshape(-1, table.shape[1]).astype(np.float32)


def _weights(size: int, wanted: int, kernel) -> np.ndarray:
    """Rows that make `wanted` samples from `size`, [wanted, size]."""
    centre = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((wanted, size))
    for offset in range(-1, 3):
        column = first + offset
        np.add.at(
            weights,
            (np.arange(wanted), np.clip(column, 0, size - 1)),
            kernel(np.abs(centre - column)),
        )
    return weights


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    a, d = _CUBIC, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
