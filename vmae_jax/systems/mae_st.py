"""MAE-ST: predict the pixels of patches that were hidden at random in space and time.

It was released twice, and the two differ in decoder, predicted frames and initial values; each
difference is a field of the config (docs/architecture.md names them). What both share and VideoMAE
does otherwise: targets are normalised over a whole patch of the clip as the network sees it, and
one frame of each tubelet is predicted.

Source: MAE-ST (arXiv:2205.09113); its repository and PySlowFast, which trained the published
weights (reference: mae_st.md).
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import clip_grid
from vmae_jax.models import flops
from vmae_jax.ops import masking
from vmae_jax.ops.losses import Ratio, masked_mse, whole_patch_targets
from vmae_jax.ops.patches import Order, patchify, target_frames
from vmae_jax.ops.preprocess import denormalise, normalise, unit_range
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.autoencoders import autoencoder, painter
from vmae_jax.systems.base import Batch, Params, System
from vmae_jax.systems.inputs import clip_spec, clips, drawn_flips, stream
from vmae_jax.systems.stacks import vit_encoder


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    model, options = config.model, config.masking
    grid, tubelet = clip_grid(config), tuple(model.tubelet)
    frames = target_frames(options.target_frames, frames=config.data.frames, slots=grid[0])
    # The patch of the predicted frames that a token stands for.
    predicted = (len(frames) // grid[0], *tubelet[1:])
    net = autoencoder(
        config,
        chip,
        target_values=predicted[0] * predicted[1] * predicted[2] * model.channels,
        decoder_positions=model.decoder_positions,
        decoder_class_token=model.decoder_class_token,
        to_decoder_bias=True,
        mask_tokens=options.mask_tokens,
    )
    constants = {"mean": config.data.mean, "std": config.data.std}

    def predicted_patches(video: jax.Array, order: Order = "pixels") -> jax.Array:
        """The patches [B, N, target values] of the predicted frames, as they are."""
        shown = jnp.stack([video[:, frame] for frame in frames], axis=1)
        return patchify(shown, predicted, order=order)

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds masks, the visible patches and what is to be predicted of the others."""
        masks = masking.pretraining_masks(
            keys, grid=grid, encoder=options.encoder, decoder=options.decoder
        )
        video = clips(config, batch, drawn_flips(config, stream(keys, 2)))
        seen = functools.partial(normalise, **constants, order="planes")
        patches = patchify(video, tubelet, order="planes")
        hidden = gather(predicted_patches(video, "planes"), masks.target_idx)
        return {
            "visible": seen(gather(patches, masks.visible_idx)),
            "visible_idx": masks.visible_idx,
            "target": whole_patch_targets(seen(hidden), normalize=options.normalize_target),
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
        """Videos of the predicted frames; every hidden token is predicted."""
        masks = masking.pretraining_masks(keys, grid=grid, encoder=options.encoder)
        video = clips(config, batch)
        patches = gather(patchify(video, tubelet), masks.visible_idx)
        pred = net.predict(
            params, normalise(patches, **constants), masks.visible_idx, masks.target_idx
        ).astype(jnp.float32)
        shown = predicted_patches(video)
        hidden = gather(shown, masks.target_idx)
        paint = painter(unit_range(shown), masks.target_idx, net=net, tubelet=predicted)
        which = "" if len(frames) == config.data.frames else ", predicted frames only"
        videos = {
            f"original{which}": paint(unit_range(hidden)),
            "masked": paint(jnp.full(hidden.shape, 0.5)),
        }
        if not options.normalize_target:
            return {**videos, "prediction": paint(denormalise(pred, **constants))}
        true = normalise(hidden, **constants)
        deviation = jnp.sqrt(true.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        borrowed = pred * deviation + true.mean(axis=-1, keepdims=True)
        return {
            **videos,
            "raw prediction, grey = patch mean": paint(0.5 + 0.2 * pred),
            "prediction with true patch statistics": paint(denormalise(borrowed, **constants)),
        }

    return System(
        name=config.system,
        init=net.network.init,
        targets=targets,
        loss=loss,
        batch_spec=clip_spec(config),
        compute_dtype=model.dtype,
        macs=net.macs,
        train_flops=flops.training_flops(net.macs),
        encoder=vit_encoder(config, chip, final_norm=True),
        choices=net.choices,
        reconstruct=reconstruct,
    )
