"""Random erasing on the device: a box of each clip is replaced by noise."""

import math

import jax
import jax.numpy as jnp

from vmae_jax.ops.boxes import inside_boxes

_TRIES = 100
_AREA = (0.02, 1 / 3)  # of the frame
_ASPECT = (0.3, 1 / 0.3)  # height / width


def draw_erasures(keys: jax.Array, *, prob: float, size: tuple[int, int]) -> jax.Array | None:
    """Draws for each clip by its own key which part of its frames is erased.

    Area uniform, aspect log-uniform, sides rounded; of up to 100 draws the first whose box is
    smaller than the frame on both sides counts, then its place is uniform. All draws are made at
    once, which is the same law as one after another.

    Args:
      keys: typed PRNG keys [B].
      prob: with which a clip is erased; static.
      size: (height, width) of the frames; static.

    Returns:
      int32 [B, 4], top, left, bottom, right (exclusive), empty where nothing is erased; None where
      the probability is 0.

    Raises:
      ValueError: not a probability.

    Source: random erasing (arXiv:1708.04896) with the ranges of VideoMAE's and V2's released
    fine-tuning.
    """
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"an erasing probability lies in [0, 1], got {prob}")
    if prob == 0.0:
        return None
    height, width = size

    def draw(key: jax.Array) -> jax.Array:
        erased, areas, aspects, y, x = jax.random.split(key, 5)
        area = jax.random.uniform(areas, (_TRIES,), minval=_AREA[0], maxval=_AREA[1])
        log_aspect = jax.random.uniform(
            aspects, (_TRIES,), minval=math.log(_ASPECT[0]), maxval=math.log(_ASPECT[1])
        )
        pixels, root = area * (height * width), jnp.exp(log_aspect / 2)
        heights = jnp.round(jnp.sqrt(pixels) * root).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(pixels) / root).astype(jnp.int32)
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        box_h, box_w = heights[first], widths[first]
        top = jax.random.randint(y, (), 0, jnp.maximum(height - box_h, 0) + 1)
        left = jax.random.randint(x, (), 0, jnp.maximum(width - box_w, 0) + 1)
        box = jnp.stack([top, left, top + box_h, left + box_w])
        return box * (jax.random.bernoulli(erased, prob) & fits.any())

    return jax.vmap(draw)(keys)


def erase(video: jax.Array, boxes: jax.Array | None, keys: jax.Array) -> jax.Array:
    """Replaces a box, the same in all frames of a clip, by noise, another in each frame.

    Args:
      video: floating [B, T, H, W, C], normalised.
      boxes: of `draw_erasures`; None: the video as it is.
      keys: typed PRNG keys [B], other than those of the boxes.

    Returns:
      [B, T, H, W, C] of the same dtype; N(0, 1) for each value in the boxes.
    """
    if boxes is None:
        return video
    noise = jax.vmap(lambda key: jax.random.normal(key, video.shape[1:]))(keys)
    erased = inside_boxes(boxes, video.shape[2:4])[:, None, :, :, None]
    return jnp.where(erased, noise.astype(video.dtype), video)
