"""What happens to uint8 pixels on the device: flips, and normalisation of the gathered patches."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vmae_jax.ops.patches import Order

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def unit_range(pixels: jax.Array) -> jax.Array:
    """uint8 -> float32 in [0, 1]; the scale on which pixel targets are defined."""
    if pixels.dtype != jnp.uint8:
        raise TypeError(f"expected uint8 pixels, got {pixels.dtype}")
    return pixels.astype(jnp.float32) / 255.0


def normalise(
    patches: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    order: Order = "pixels",
) -> jax.Array:
    """Normalises patch vectors (or, in the order of pixels, a video) per channel.

    Args:
      patches: uint8 [..., P], P = k*C, as `patchify` orders them.
      mean, std: one number per channel, on the [0, 1] scale.
      order: of the values of a patch.

    Returns:
      float32 [..., P] = (pixels / 255 - mean) / std.

    Raises:
      ValueError: mean and std differ in length, or P is not a multiple of it.
    """
    channels = len(mean)
    if len(std) != channels or not channels or patches.shape[-1] % channels:
        raise ValueError(
            f"mean has {channels} and std {len(std)} channels for vectors of {patches.shape[-1]} "
            "values; give one number per channel"
        )
    repeats = patches.shape[-1] // channels
    spread = {"pixels": jnp.tile, "planes": jnp.repeat}[order]
    mean_row = spread(jnp.asarray(mean, jnp.float32), repeats)
    std_row = spread(jnp.asarray(std, jnp.float32), repeats)
    return (unit_range(patches) - mean_row) / std_row


def denormalise(patches: jax.Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Undoes `normalise` in the order of pixels: float32 [..., P] on the [0, 1] scale."""
    repeats = patches.shape[-1] // len(mean)
    mean_row = jnp.tile(jnp.asarray(mean, jnp.float32), repeats)
    std_row = jnp.tile(jnp.asarray(std, jnp.float32), repeats)
    return patches.astype(jnp.float32) * std_row + mean_row


def draw_flips(keys: jax.Array, prob: float) -> jax.Array | None:
    """Decides for each clip by its own key whether it is mirrored.

    Args:
      keys: typed PRNG keys [B].
      prob: probability of a flip.

    Returns:
      bool [B]; None where the probability is 0, so that nothing is computed.

    Raises:
      ValueError: not a probability.
    """
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"a flip probability lies in [0, 1], got {prob}")
    if prob == 0.0:
        return None
    return jax.vmap(lambda key: jax.random.bernoulli(key, prob))(keys)


def mirror(video: jax.Array, mirrored: jax.Array | None) -> jax.Array:
    """Shows clips left to right.

    Args:
      video: [B, T, H, W, C], any dtype.
      mirrored: bool [B], which ones; None: none.
    """
    if mirrored is None:
        return video
    return jnp.where(mirrored[:, None, None, None, None], video[:, :, :, ::-1], video)
