"""Fixed position tables. They are constants of the program, never parameters."""

import functools

import numpy as np


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
