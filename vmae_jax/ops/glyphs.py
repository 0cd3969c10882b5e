"""Draws histograms of oriented gradients: in each cell a line along the edge for every bin."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def glyphs(histograms: jax.Array, *, cell: int) -> jax.Array:
    """Draws histograms at the size of the frames that they describe.

    Args:
      histograms: [..., C, K, h, w] as `ops.hog.hog` makes them; a line is as bright as the value of
        its bin, and none is drawn for a negative one (of predictions).
      cell: side of a cell in pixels.

    Returns:
      float32 [..., h * cell, w * cell, C] in [0, 1].
    """
    bins = jnp.moveaxis(histograms.astype(jnp.float32), -3, 0)[..., None, None]
    lines = edge_lines(len(bins), cell)
    # The brightest line at a pixel: all of them cross in the middle, where a sum would be white.
    drawn = jnp.zeros((), jnp.float32)
    for brightness, line in zip(bins, lines, strict=True):
        drawn = jnp.maximum(drawn, brightness * line)
    return jnp.minimum(rearrange(drawn, "... c h w p q -> ... (h p) (w q) c"), 1.0)


def edge_lines(bins: int, cell: int) -> np.ndarray:
    """A line through the middle of a cell for each bin, across its gradients: [K, cell, cell]."""
    middle = (cell - 1) / 2
    y, x = np.mgrid[:cell, :cell] - middle
    # Bin k holds gradients between k and k + 1 of K steps from the vertical to the horizontal.
    angle = (np.arange(bins) + 0.5)[:, None, None] * np.pi / bins
    away = np.abs(x * np.sin(angle) + y * np.cos(angle))
    inside = np.hypot(x, y) <= cell / 2
    return (np.clip(1.5 - away, 0.0, 1.0) * inside).astype(np.float32)
