"""Boxes on frames as masks."""

import jax
import jax.numpy as jnp


def inside_boxes(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which pixels lie in each box.

    Args:
      boxes: int [N, 4], top, left, bottom, right, the latter two exclusive.
      size: (height, width) of the frames; static.

    Returns:
      bool [N, height, width].
    """
    top, left, bottom, right = (side[:, None] for side in boxes.T)
    y, x = jnp.arange(size[0]), jnp.arange(size[1])
    rows = (y >= top) & (y < bottom)
    columns = (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]
