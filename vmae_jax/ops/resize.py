"""Crops cut out of source frames and resized on the device: two matrix products a clip.

What the host's filters do to the cut-out box (`data/transforms`, which draws the boxes too): a
triangle, in "antialias" of the width of the scale, so that shrinking averages, in "bilinear" always
one pixel wide; nothing outside the box enters; columns first, rounded to whole levels between the
two passes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange


def resized_crops(
    source: jax.Array,
    boxes: jax.Array,
    *,
    size: Sequence[int],
    resample: str = "antialias",
    mirrored: jax.Array | None = None,
) -> jax.Array:
    """Cuts boxes out of videos and resizes them; R boxes for each video.

    Every sum over pixels lies within a video, so a batch of videos that is split over devices needs
    no exchange between them.

    Args:
      source: uint8 [V, T, H, W, C].
      boxes: float32 [V * R, 4]: top, left, height, width in pixels, inside the frames; those of a
        video are adjacent.
      size: (height, width) of the result; static.
      resample: "antialias" or "bilinear"; static.
      mirrored: bool [V * R], which clips are to be seen left to right; None: none.

    Returns:
      uint8 [V * R, T, height, width, C], within one level of the host's result.
    """
    top, left, height, width = boxes.astype(jnp.float32).T
    weights = {"antialias": triangle_weights, "bilinear": two_tap_weights}[resample]
    rows = weights(top, height, pixels=source.shape[2], size=size[0])
    columns = weights(left, width, pixels=source.shape[3], size=size[1])
    if mirrored is not None:
        columns = jnp.where(mirrored[:, None, None], columns[:, ::-1], columns)
    rows, columns = (
        rearrange(side, "(v r) out pixel -> v r out pixel", v=source.shape[0])
        for side in (rows, columns)
    )
    narrow = _weighted("v t y x c, v r w x -> v r t c y w", source, columns)
    clips = _weighted("v r t c y w, v r h y -> v r t h w c", narrow, rows)
    return rearrange(clips, "v r t h w c -> (v r) t h w c")


def triangle_weights(start: jax.Array, extent: jax.Array, *, pixels: int, size: int) -> jax.Array:
    """How much each pixel of a line counts in each pixel of the resized stretch.

    Args:
      start, extent: float32 [N], where the stretch begins and how long it is; at least the centre
        of one pixel lies in it.
      pixels: length of the line; static.
      size: pixels of the result; static.

    Returns:
      float32 [N, size, pixels], rows that add up to 1.
    """
    scale = (extent / size)[:, None, None]
    start, stop = start[:, None, None], (start + extent)[:, None, None]
    centre = jnp.arange(pixels) + 0.5
    place = start + scale * (jnp.arange(size)[:, None] + 0.5)
    weights = jnp.maximum(1 - jnp.abs(centre - place) / jnp.maximum(scale, 1.0), 0.0)
    weights = jnp.where((centre > start) & (centre < stop), weights, 0.0)
    return weights / weights.sum(-1, keepdims=True)


def two_tap_weights(start: jax.Array, extent: jax.Array, *, pixels: int, size: int) -> jax.Array:
    """As `triangle_weights`, but of the two pixels nearest to the place, whatever the scale."""
    start, extent = start[:, None, None], extent[:, None, None]
    place = start + (extent / size) * (jnp.arange(size)[:, None] + 0.5)
    place = jnp.clip(place, start + 0.5, start + extent - 0.5)  # nothing outside enters
    return jnp.maximum(1 - jnp.abs(jnp.arange(pixels) + 0.5 - place), 0.0)


def _weighted(pattern: str, pixels: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums uint8 pixels with float32 weights; the result is rounded to uint8 as Pillow does.

    bfloat16 holds whole levels exactly, but a weight only to 8 bits, which alone would be off by
    two levels: a second product adds what the first one lost of it.
    """
    coarse = weights.astype(jnp.bfloat16)
    rest = (weights - coarse.astype(jnp.float32)).astype(jnp.bfloat16)
    levels = sum(
        jnp.einsum(
            pattern.replace(" ", ""),
            pixels.astype(jnp.bfloat16),
            part,
            preferred_element_type=jnp.float32,
        )
        for part in (coarse, rest)
    )
    return jnp.floor(levels + 0.5).astype(jnp.uint8)
