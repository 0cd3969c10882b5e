"""What fine-tuning does to clips and labels on the device: flip, normalise, erase, mix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.config import mixed_clips
from vmae_jax.ops.erase import draw_erasures, erase
from vmae_jax.ops.mixup import Mix, draw_mix, mix_targets, mix_videos, soft_targets
from vmae_jax.ops.preprocess import normalise
from vmae_jax.systems.base import Batch
from vmae_jax.systems.inputs import clips, drawn_flips, stream


class View(NamedTuple):
    """Augmented clips of a batch.

    Attributes:
      video: [B, T, H, W, C] in the compute dtype, normalised, erased and mixed.
      clean: the same before erasing and mixing.
      mix: how clips were blended; None: not at all.
    """

    video: jax.Array
    clean: jax.Array
    mix: Mix | None

    def blended(self, targets: jax.Array) -> jax.Array:
        """Targets [B, K] of the clips, blended as the clips are."""
        return mix_targets(targets, self.mix)


def augmented(config: ConfigDict, batch: Batch, keys: jax.Array) -> View:
    """Draws and applies what `config.augment` and `config.data.flip` say, by each clip's own key.

    Source: order and ranges of the released fine-tuning (reference: videomae.md, 5.1).
    """
    augment, size = config.augment, tuple(config.data.size)
    video = clips(config, batch, drawn_flips(config, stream(keys, 2)))
    video = normalise(video, mean=config.data.mean, std=config.data.std)
    clean = video.astype(config.model.dtype)
    boxes = draw_erasures(stream(keys, 4), prob=augment.erase, size=size)
    mix = draw_mix(
        stream(keys, 5),
        clips=mixed_clips(config),
        size=size,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.switch_prob,
    )
    return View(mix_videos(erase(clean, boxes, stream(keys, 6)), mix), clean, mix)


def smoothed(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Labels [B] -> distributions [B, K] as `config.augment.smoothing` says.

    A clip without a valid label makes its row not finite, which the train step reports with the
    names of the clips; it never teaches anything.
    """
    classes = config.model.num_classes

    def targets(labels: jax.Array) -> jax.Array:
        soft = soft_targets(labels, classes=classes, smoothing=config.augment.smoothing)
        valid = (labels >= 0) & (labels < classes)
        return jnp.where(valid[:, None], soft, jnp.nan)

    return targets
