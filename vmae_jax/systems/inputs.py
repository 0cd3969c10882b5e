"""From the batch to normalised clips: what all systems on RGB or grey clips consume."""

import jax
from ml_collections import ConfigDict

from vmae_jax.config import clips_of_a_window
from vmae_jax.ops.patches import Tubelet, patchify
from vmae_jax.ops.preprocess import draw_flips, mirror, normalise
from vmae_jax.ops.resize import resized_crops
from vmae_jax.systems.base import ArraySpec, Batch


def clip_spec(config: ConfigDict) -> dict[str, ArraySpec]:
    """The arrays of a batch that clips are made of, and their places in the epoch."""
    frames, channels = config.data.frames, config.model.channels
    index = {"index": ArraySpec((), "int32")}
    if config.data.resize == "host":
        return {"video": ArraySpec((frames, *config.data.size, channels), "uint8"), **index}
    shared = clips_of_a_window(config)
    source = ArraySpec((frames, *config.data.canvas, channels), "uint8", shared)
    return {"source": source, "box": ArraySpec((4,), "float32"), **index}


def stream(keys: jax.Array, which: int) -> jax.Array:
    """Keys [B] for one of the things that are drawn for each clip."""
    return jax.vmap(lambda key: jax.random.fold_in(key, which))(keys)


def clips(config: ConfigDict, batch: Batch, mirrored: jax.Array | None = None) -> jax.Array:
    """The clips as uint8 [B, T, H, W, C], cut out here where the host left that open."""
    if "video" in batch:
        return mirror(batch["video"], mirrored)
    return resized_crops(
        batch["source"],
        batch["box"],
        size=config.data.size,
        resample=config.data.filter,
        mirrored=mirrored,
    )


def drawn_flips(config: ConfigDict, keys: jax.Array) -> jax.Array | None:
    """Which clips are mirrored, bool [B]; None where none is."""
    return draw_flips(keys, 0.5 if config.data.flip else 0.0)


def normalised_clips(config: ConfigDict, batch: Batch) -> jax.Array:
    """Whole clips as they come, float32 [B, T, H, W, C], normalised."""
    return normalise(clips(config, batch), mean=config.data.mean, std=config.data.std)


def patches_of(config: ConfigDict, batch: Batch, tubelet: Tubelet) -> jax.Array:
    """All patches of whole clips as they are, float32 [B, N, P], normalised, in order of pixels."""
    patches = patchify(clips(config, batch), tubelet)
    return normalise(patches, mean=config.data.mean, std=config.data.std)
