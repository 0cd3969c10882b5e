"""Histograms of oriented gradients: the features that MaskFeat predicts.

Everything is float32, whatever dtype the networks compute in: an orientation at the edge of a bin
falls on one side or the other, so rounding would change the target, not blur it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vmae_jax.ops.patches import Tubelet, grid_of


def hog(frames: jax.Array, *, bins: int = 9, cell: int = 8, window: int = 0) -> jax.Array:
    """Histograms of oriented gradients of each colour of frames.

    Gradients by the 3 x 3 Sobel operator (left minus right, top minus bottom) on frames reflected
    at their borders. Each pixel adds its gradient's magnitude to one bin of its cell; histograms
    have unit length, those of flat cells are zero. A factor on a colour changes nothing.

    Args:
      frames: [..., H, W, C] of any dtype, e.g. pixels from 0 to 255. On whole numbers gradients are
        exact, and so is the bin of one that lies on an edge.
      bins: K, of the half circle: opposite directions fall into the same bin.
      cell: side of the square cells, in pixels.
      window: weigh the pixels of each window of that side by a Gaussian of half its width; 0: no.

    Returns:
      float32 [..., C, K, H / cell, W / cell].

    Raises:
      ValueError: a side that cells or windows do not divide.

    Source: MaskFeat (arXiv:2112.09133), section 3.2, and its released layer: bin k holds the angles
    [k, k + 1) * 180 / K degrees, counted from the vertical gradient to the horizontal one.
    """
    height, width = frames.shape[-3:-1]
    for name, side in (("cells", cell), ("windows", window or cell)):
        if height % side or width % side:
            raise ValueError(f"frames of {height}x{width} do not divide into {name} of {side}")
    planes = jnp.moveaxis(frames, -1, -3).astype(jnp.float32)
    across, down = gradients(planes)
    magnitude = jnp.sqrt(across * across + down * down)
    if window:
        tiles = (height // window, width // window)
        magnitude = magnitude * np.tile(gaussian_window(window), tiles)
    bin_of_pixel = orientation(across, down, bins)
    one_hot = bin_of_pixel[..., None, :, :] == jnp.arange(bins)[:, None, None]
    sums = jnp.where(one_hot, magnitude[..., None, :, :], 0.0)
    # Rows before columns: a sum over columns, the axis that registers lie along, costs more.
    sums = rearrange(sums, "... (h p) w -> ... h p w", p=cell).sum(axis=-2)
    sums = rearrange(sums, "... (w p) -> ... w p", p=cell).sum(axis=-1)
    length = jnp.sqrt(jnp.sum(sums * sums, axis=-3, keepdims=True))
    return sums / jnp.maximum(length, 1e-12)


def gradients(planes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sobel gradients (left minus right, top minus bottom) of float32 [..., H, W], same shapes.

    Differences come before sums, so that neighbours which are equal (at a reflected border they
    always are) give exactly zero and not a rounding error whose sign picks a bin.
    """
    edges = [(0, 0)] * (planes.ndim - 2) + [(1, 1), (1, 1)]
    padded = jnp.pad(planes, edges, mode="reflect")
    across = padded[..., :, :-2] - padded[..., :, 2:]
    down = padded[..., :-2, :] - padded[..., 2:, :]
    return (
        across[..., :-2, :] + 2.0 * across[..., 1:-1, :] + across[..., 2:, :],
        down[..., :, :-2] + 2.0 * down[..., :, 1:-1] + down[..., :, 2:],
    )


def orientation(across: jax.Array, down: jax.Array, bins: int) -> jax.Array:
    """The bin of each gradient, int32: floor(atan2(across, down) / pi * bins) modulo bins.

    Without the angle: bin k lies beyond k of the lines between bins, and on which side of a line a
    gradient lies is the sign of a cross product.
    """
    # A half turn keeps the bin and brings every gradient to one side.
    down = jnp.where(across < 0.0, -down, down)
    across = jnp.abs(across)
    angles = [k * math.pi / bins for k in range(1, bins)]
    beyond = [math.cos(a) * across - math.sin(a) * down >= 0.0 for a in angles]
    count = functools.reduce(jnp.add, (side.astype(jnp.int32) for side in beyond))
    # Straight up is a half turn from straight down, which begins bin 0.
    return jnp.where(across == 0.0, 0, count)


def gaussian_window(side: int) -> np.ndarray:
    """float32 [side, side] of sum 1; deviation side // 2, as released."""
    place = (np.arange(side) - (side - 1) / 2) / (side // 2)
    line = np.exp(-0.5 * place**2)
    window = np.outer(line, line)
    return (window / window.sum()).astype(np.float32)


def hog_targets(video: jax.Array, tubelet: Tubelet, *, bins: int = 9, cell: int = 8) -> jax.Array:
    """One vector of histograms for each patch: those of its cells in its first frame.

    Args:
      video: [B, T, H, W, C] of any dtype.
      tubelet: (frames, rows, columns) of one patch; rows and columns are multiples of `cell`.
      bins, cell: see `hog`.

    Returns:
      float32 [B, N, C * bins * rows/cell * columns/cell], tokens in raster order; in a vector the
      colour is slowest, then bin, row and column of the cell. 108 values for patches of 16 x 16.

    Raises:
      ValueError: sizes that do not divide.

    Source: MaskFeat's released code. Its stem is centred on the first frame of each tubelet.
    """
    _, frames, height, width, _ = video.shape
    grid_of(frames=frames, height=height, width=width, tubelet=tubelet)
    if tubelet[1] % cell or tubelet[2] % cell:
        raise ValueError(f"patches of {tubelet[1]}x{tubelet[2]} do not divide into cells of {cell}")
    histograms = hog(video[:, :: tubelet[0]], bins=bins, cell=cell)
    return rearrange(
        histograms,
        "b t c k (h i) (w j) -> b (t h w) (c k i j)",
        i=tubelet[1] // cell,
        j=tubelet[2] // cell,
    )
