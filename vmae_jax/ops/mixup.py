"""Mixup and cutmix on the device: clips and targets of a batch blended in pairs.

A *block* is `clips` adjacent rows of the batch, which share one draw: the batch of one GPU in the
released code. A clip's partner is the one at the other end of its block. A block lies within the
rows of one device, so nothing is exchanged between devices.

Both kinds are one operation: a box of the frames, all of it for mixup, is replaced by the
partner's, more or less opaquely (cutmix: fully).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vmae_jax.ops.boxes import inside_boxes


class Mix(NamedTuple):
    """How much of the partners the clips of each block show, and where.

    Attributes:
      box: int32 [G, 4], top, left, bottom, right (exclusive) of the part where they show.
      opacity: float32 [G], of the partner within it; 0: not mixed.
      share: float32 [G], of the partner in the target: opacity times the box's part of the frame.
    """

    box: jax.Array
    opacity: jax.Array
    share: jax.Array


def draw_mix(
    keys: jax.Array,
    *,
    clips: int,
    size: tuple[int, int],
    mixup: float,
    cutmix: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> Mix | None:
    """Draws for each block whether it is mixed, which way and how much.

    Args:
      keys: typed PRNG keys [B], one per clip; the first of a block decides for it.
      clips: in a block; even, or the one in the middle would meet itself. Static, as what follows.
      size: (height, width) of the frames.
      mixup, cutmix: a of the distribution Beta(a, a) of the clip's own share; 0: not this kind.
      prob: with which a block is mixed.
      switch_prob: with which cutmix is chosen where both kinds are on.

    Returns:
      the mixes of the B / clips blocks; None where nothing is ever mixed.

    Raises:
      ValueError: numbers out of range, or blocks that do not divide the batch.

    Source: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) as in timm's batch mode, which
    VideoMAE and V2 fine-tune with: the box has the drawn area before it is clipped to the frame,
    its sides rounded down to even numbers, its centre anywhere; the clipped box makes the share.
    """
    if min(mixup, cutmix) < 0:
        raise ValueError(f"mixup={mixup} and cutmix={cutmix} must be 0 or more")
    if not (0.0 <= prob <= 1.0 and 0.0 <= switch_prob <= 1.0):
        raise ValueError(f"prob={prob} and switch_prob={switch_prob} must lie in [0, 1]")
    if not prob or not (mixup or cutmix):
        return None
    if clips < 2 or clips % 2 or len(keys) % clips:
        raise ValueError(
            f"a batch of {len(keys)} clips cannot be mixed in blocks of {clips}; the block must be "
            "even and divide the batch"
        )
    cut_prob = switch_prob if mixup and cutmix else float(cutmix > 0)
    height, width = size

    def draw(key: jax.Array) -> Mix:
        mixed, cuts, other, y, x = jax.random.split(key, 5)
        cuts = jax.random.bernoulli(cuts, cut_prob)
        alpha = jnp.where(cuts, cutmix, mixup)
        other = _symmetric_beta(other, alpha)
        top, bottom = _side(y, height, jnp.sqrt(other))
        left, right = _side(x, width, jnp.sqrt(other))
        box = jnp.stack([top, left, bottom, right])
        box = jnp.where(cuts, box, jnp.array([0, 0, height, width]))
        opacity = jnp.where(cuts, 1.0, other) * jax.random.bernoulli(mixed, prob)
        area = (box[2] - box[0]) * (box[3] - box[1])
        return Mix(box, opacity, opacity * area / (height * width))

    return jax.vmap(draw)(keys.reshape(-1, clips)[:, 0])


def _symmetric_beta(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """One draw from Beta(alpha, alpha).

    `jax.random.beta` draws until it accepts: a loop for all blocks of all devices together, which
    would have to agree on its end. This is exact in one go: half of one plus T / sqrt(n + T^2), T
    of Student's distribution with n = 2 alpha degrees of freedom, by the polar method.

    Source: Bailey, Polar generation of random variates with the t-distribution (1994).
    """
    radius, angle = jax.random.uniform(key, (2,))
    power = jnp.log(radius) / alpha
    cosine = jnp.cos(2 * jnp.pi * angle)
    tangent = -jnp.expm1(power) * jnp.square(cosine)
    return (1.0 + jnp.sign(cosine) * jnp.sqrt(tangent / (jnp.exp(power) + tangent))) / 2


def _side(key: jax.Array, length: int, ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Begin and end of a stretch around a random centre, clipped to the line."""
    half = jnp.floor(length * ratio).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, length)
    return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, length)


def mix_videos(video: jax.Array, mix: Mix | None) -> jax.Array:
    """Blends each clip with its partner.

    One elementwise pass, to be fused with what comes before; to hand over clips that are in memory
    as bfloat16 halves what it reads.

    Args:
      video: floating [B, T, H, W, C], normalised.
      mix: of the batch's blocks; None: the video as it is.

    Returns:
      [B, T, H, W, C] of the same dtype, blended in float32.
    """
    if mix is None:
        return video
    inside = inside_boxes(mix.box, video.shape[2:4]) * mix.opacity[:, None, None]
    weight = inside[:, None, None, :, :, None]
    own = rearrange(video, "(g m) t h w c -> g m t h w c", g=len(mix.opacity))
    mixed = _blend(own, weight).astype(video.dtype)
    return rearrange(mixed, "g m t h w c -> (g m) t h w c")


def soft_targets(labels: jax.Array, *, classes: int, smoothing: float = 0.0) -> jax.Array:
    """One-hot targets with label smoothing: s / K for all classes, 1 - s more for the right one.

    Args:
      labels: int [B], 0 to classes - 1; the caller sees to it that no clip is without one.

    Returns:
      float32 [B, classes], rows that add up to 1.
    """
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def mix_targets(targets: jax.Array, mix: Mix | None) -> jax.Array:
    """Blends the targets [B, K] as `mix_videos` has blended the clips."""
    if mix is None:
        return targets
    own = rearrange(targets, "(g m) k -> g m k", g=len(mix.share))
    return rearrange(_blend(own, mix.share[:, None, None]), "g m k -> (g m) k")


def _blend(own: jax.Array, weight: jax.Array) -> jax.Array:
    """Weights of 0 and 1 give either side exactly."""
    own = own.astype(jnp.float32)
    return own * (1.0 - weight) + own[:, ::-1] * weight
