"""Classification of clips: fine-tuning, post-pretraining, and training from scratch.

Source: VideoMAE (arXiv:2203.12602), VideoMAE V2 (arXiv:2303.16727) and their released fine-tuning.
"""

import jax
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import mixed_clips
from vmae_jax.models import flops
from vmae_jax.ops.losses import Ratio, soft_target_cross_entropy
from vmae_jax.systems.augmented import augmented, smoothed
from vmae_jax.systems.base import ArraySpec, Batch, Params, System
from vmae_jax.systems.classifiers import check_classes, classifier, encoder_of
from vmae_jax.systems.inputs import clip_spec, stream


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on.

    Where the number of classes is open there is no head: an encoder for features, which cannot be
    trained.
    """
    net, soft = classifier(config, chip, headless=True), smoothed(config)

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds augmented clips and, for each, a distribution over the classes.

        Raises:
          ConfigError: their number is open.
        """
        check_classes(config)
        view = augmented(config, batch, keys)
        return {"video": view.video, "target": view.blended(soft(batch["label"]))}

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        logits = net.logits(params, batch["video"], stream(keys, 3) if train else None)
        return soft_target_cross_entropy(logits, batch["target"]), {}

    return System(
        name=config.system,
        init=net.init,
        targets=targets,
        loss=loss,
        batch_spec={**clip_spec(config), "label": ArraySpec((), "int32")},
        compute_dtype=config.model.dtype,
        macs=net.macs,
        train_flops=flops.training_flops(net.macs),
        encoder=encoder_of(config, chip, net),
        together=mixed_clips(config),
        logits=net.of_batch if config.model.num_classes else None,
        choices=net.choices,
    )
