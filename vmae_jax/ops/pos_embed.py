"""Position tables: the fixed sinusoid, and any table on another grid than it was made for."""

import functools

import numpy as np

from vmae_jax.ops.bicubic import bicubic_matrix, linear_matrix
from vmae_jax.ops.patches import Grid


@functools.lru_cache(maxsize=32)
def sincos_table(num_tokens: int, width: int) -> np.ndarray:
    """1-D sinusoid over the flattened token index, not factorised over time, height and width.

    angle(n, j) = n / 10000^(2 floor(j/2) / width); even columns sin, odd columns cos (interleaved).

    Args:
      num_tokens: rows, t*h*w of the grid.
      width: columns; any number.

    Returns:
      float32 [num_tokens, width], computed in float64; read-only, shared between callers.

    Source: VideoMAE (arXiv:2203.12602), released code (`get_sinusoid_encoding_table`).
    """
    if num_tokens < 1 or width < 1:
        raise ValueError(f"a position table needs positive sizes, got {num_tokens} x {width}")
    column = np.arange(width)
    rate = np.power(10000.0, -2.0 * (column // 2) / width)
    angle = np.arange(num_tokens, dtype=np.float64)[:, None] * rate
    table = np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
    table.setflags(write=False)
    return table


@functools.lru_cache(maxsize=32)
def sincos_positions(grid: Grid, width: int, *, origin: Grid) -> np.ndarray:
    """The fixed sinusoid of one grid for the tokens of another: `resize_positions` of its table.

    Args:
      grid: tokens along (time, height, width) that are to be placed.
      width: columns.
      origin: grid whose token numbers the sinusoid counts.

    Returns:
      float32 [t*h*w, width] of `grid`, read-only; `sincos_table` itself where the grids are equal.

    Source: Unmasked Teacher's released fine-tuning (reference/umt.md, A6 and D2).
    """
    table = sincos_table(origin[0] * origin[1] * origin[2], width)
    if grid == origin:
        return table
    table = resize_positions(table, origin, grid)
    table.setflags(write=False)
    return table


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
