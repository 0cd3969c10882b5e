"""VideoMAE and VideoMAE V2: predict the pixels of hidden tubelets from a few visible ones.

V2 is VideoMAE with a decoder mask: the decoder predicts only part of the positions, and the loss
counts those of them that the encoder did not see.

Source: VideoMAE (arXiv:2203.12602), VideoMAE V2 (arXiv:2303.16727) and their released code.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.models import flops
from vmae_jax.ops import masking
from vmae_jax.ops.losses import Ratio, masked_mse, pixel_targets
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.preprocess import normalise, unit_range
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.autoencoders import autoencoder, painter
from vmae_jax.systems.base import Batch, Params, System
from vmae_jax.systems.inputs import clip_spec, clips, drawn_flips, stream
from vmae_jax.systems.stacks import vit_encoder


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    net = autoencoder(config, chip)
    grid = net.counts.grid
    tubelet, channels = config.model.tubelet, config.model.channels

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds masks, the visible patches and what is to be predicted of the others.

        Patches are gathered as uint8 before anything is computed, so that pixels which nobody
        uses are never converted.
        """
        masks = masking.pretraining_masks(
            keys, grid=grid, encoder=config.masking.encoder, decoder=config.masking.decoder
        )
        mirrored = drawn_flips(config, stream(keys, 2))
        patches = patchify(clips(config, batch, mirrored), tubelet, order="planes")
        visible = gather(patches, masks.visible_idx)
        hidden = unit_range(gather(patches, masks.target_idx))
        return {
            "visible": normalise(
                visible, mean=config.data.mean, std=config.data.std, order="planes"
            ),
            "visible_idx": masks.visible_idx,
            "target": pixel_targets(
                hidden,
                channels=channels,
                normalize=config.masking.normalize_target,
                order="planes",
            ),
            "target_idx": masks.target_idx,
            "weight": masks.weight,
        }

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        pred = net.predict(
            params,
            batch["visible"],
            batch["visible_idx"],
            batch["target_idx"],
            keys=stream(keys, 3) if train else None,
            order="planes",
        )
        return masked_mse(pred, batch["target"], batch["weight"]), {}

    def reconstruct(
        params: Params, frozen: Params, batch: Batch, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """Videos to look at; every hidden token is predicted, whatever the decoder mask."""
        masks = masking.pretraining_masks(keys, grid=grid, encoder=config.masking.encoder)
        patches = patchify(clips(config, batch), tubelet)
        visible = normalise(
            gather(patches, masks.visible_idx), mean=config.data.mean, std=config.data.std
        )
        pred = net.predict(params, visible, masks.visible_idx, masks.target_idx)
        pred, original = pred.astype(jnp.float32), unit_range(patches)
        hidden = gather(original, masks.target_idx)
        video = painter(original, masks.target_idx, net=net, tubelet=tubelet)
        videos = {"original": video(hidden), "masked": video(jnp.full_like(hidden, 0.5))}
        if not config.masking.normalize_target:
            return {**videos, "prediction": video(pred)}
        return {
            **videos,
            "raw prediction, grey = patch mean": video(0.5 + 0.2 * pred),
            "prediction with true patch statistics": video(
                _with_statistics_of(pred, hidden, channels)
            ),
        }

    return System(
        name=config.system,
        init=net.network.init,
        targets=targets,
        loss=loss,
        batch_spec=clip_spec(config),
        compute_dtype=config.model.dtype,
        macs=net.macs,
        train_flops=flops.training_flops(net.macs),
        encoder=vit_encoder(config, chip, final_norm=True),
        choices=net.choices,
        reconstruct=reconstruct,
    )


def _with_statistics_of(pred: jax.Array, hidden: jax.Array, channels: int) -> jax.Array:
    """Undoes the per-patch normalisation with the mean and deviation of the true patches."""
    pixels = hidden.reshape(*hidden.shape[:2], -1, channels)
    mean = pixels.mean(axis=2, keepdims=True)
    deviation = pixels.std(axis=2, ddof=1, keepdims=True) + 1e-6
    return (pred.reshape(pixels.shape) * deviation + mean).reshape(hidden.shape)
