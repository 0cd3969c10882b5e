"""Learned position tables for other grids than they were trained on.

Fixed sinusoids need none of this: models compute them for the grid that they are given.
"""

import numpy as np

from vmae_jax.ops.bicubic import bicubic_matrix, linear_matrix
from vmae_jax.ops.patches import Grid


def resize_positions(table: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Interpolates a table: bicubic over height and width, slot by slot, then linear over time.

    As the released scripts resize (ops/bicubic.py). Tables of space or of time alone are grids of
    (1, h, w) and (t, 1, 1).

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
    for axis, matrix in ((1, bicubic_matrix), (2, bicubic_matrix), (0, linear_matrix)):
        if source[axis] != target[axis]:
            weights = matrix(source[axis], target[axis])
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values.reshape(-1, table.shape[1]).astype(np.float32)
