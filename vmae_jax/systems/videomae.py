"""VideoMAE and VideoMAE V2: predict the pixels of hidden tubelets from a few visible ones.

V2 is VideoMAE with a decoder mask: the decoder predicts only part of the positions, and the loss
counts those of them that the encoder did not see.

Source: VideoMAE (arXiv:2203.12602), VideoMAE V2 (arXiv:2303.16727) and their released code.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import token_counts
from vmae_jax.models import flops
from vmae_jax.models.functional import Functional, functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.ops import masking
from vmae_jax.ops.losses import Ratio, masked_mse, pixel_targets
from vmae_jax.ops.patches import patchify, to_planes, unpatchify
from vmae_jax.ops.preprocess import normalise, unit_range
from vmae_jax.ops.tokens import gather, scatter
from vmae_jax.systems.base import Batch, Params, System
from vmae_jax.systems.inputs import clip_spec, clips, drawn_flips, stream
from vmae_jax.systems.stacks import spec_of, stack_options, vit_encoder


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    counts = token_counts(config)
    network = make_network(config, chip)
    macs = flops.mae_macs(
        spec_of(config.model.encoder),
        spec_of(config.model.decoder),
        visible=counts.visible,
        targets=counts.targets,
        values=counts.patch_values,
    )
    tubelet, channels = config.model.tubelet, config.model.channels

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds masks, the visible patches and what is to be predicted of the others.

        Patches are gathered as uint8 before anything is computed, so that pixels which nobody
        uses are never converted.
        """
        masks = masking.pretraining_masks(
            keys, grid=counts.grid, encoder=config.masking.encoder, decoder=config.masking.decoder
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
        pred = network.apply(
            _for_planes(params, channels),
            batch["visible"],
            batch["visible_idx"],
            batch["target_idx"],
            grid=counts.grid,
            keys=stream(keys, 3) if train else None,
        )
        return masked_mse(pred, batch["target"], batch["weight"]), {}

    def reconstruct(params: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
        """Videos to look at; every hidden token is predicted, whatever the decoder mask."""
        masks = masking.pretraining_masks(keys, grid=counts.grid, encoder=config.masking.encoder)
        patches = patchify(clips(config, batch), tubelet)
        visible = normalise(
            gather(patches, masks.visible_idx), mean=config.data.mean, std=config.data.std
        )
        pred = network.apply(
            params, visible, masks.visible_idx, masks.target_idx, grid=counts.grid
        ).astype(jnp.float32)
        original = unit_range(patches)
        hidden = gather(original, masks.target_idx)
        tokens = original.shape[1]

        def video(replacement: jax.Array) -> jax.Array:
            predicted = scatter(jnp.ones_like(hidden, bool), masks.target_idx, tokens)
            filled = scatter(replacement, masks.target_idx, tokens)
            shown = jnp.where(predicted, filled, original)
            return jnp.clip(unpatchify(shown, counts.grid, tubelet, channels), 0.0, 1.0)

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
        init=network.init,
        targets=targets,
        loss=loss,
        batch_spec=clip_spec(config),
        compute_dtype=config.model.dtype,
        macs=macs,
        train_flops=flops.training_flops(macs),
        encoder=vit_encoder(config, chip, final_norm=True),
        choices={
            f"{stack} attention": options.attention
            for stack, options in _options(config, chip).items()
        },
        reconstruct=reconstruct,
    )


def make_network(config: ConfigDict, chip: Chip) -> Functional:
    """The network alone, as pure functions."""
    counts, options = token_counts(config), _options(config, chip)
    return functional(
        lambda rngs: MaskedAutoencoder(
            spec_of(config.model.encoder),
            spec_of(config.model.decoder),
            values=counts.patch_values,
            encoder_options=options["encoder"],
            decoder_options=options["decoder"],
            rngs=rngs,
        )
    )


def _options(config: ConfigDict, chip: Chip) -> dict[str, StackOptions]:
    """How the two stacks are run: the encoder on visible tokens, the decoder on these and more."""
    counts = token_counts(config)
    tokens = {"encoder": counts.visible, "decoder": counts.visible + counts.targets}
    return {
        name: stack_options(config, f"model.{name}", tokens=number, chip=chip)
        for name, number in tokens.items()
    }


def _for_planes(params: Params, channels: int) -> Params:
    """The parameters for patches in the order of planes; they are kept in that of pixels."""
    reordered = functools.partial(to_planes, channels=channels)
    encoder, decoder = params["encoder"], params["decoder"]
    embed, head = encoder["patch_embed"], decoder["head"]
    embed = embed | {"kernel": reordered(embed["kernel"], axis=0)}
    head = jax.tree.map(reordered, head)
    return params | {
        "encoder": encoder | {"patch_embed": embed},
        "decoder": decoder | {"head": head},
    }


def _with_statistics_of(pred: jax.Array, hidden: jax.Array, channels: int) -> jax.Array:
    """Undoes the per-patch normalisation with the mean and deviation of the true patches."""
    pixels = hidden.reshape(*hidden.shape[:2], -1, channels)
    mean = pixels.mean(axis=2, keepdims=True)
    deviation = pixels.std(axis=2, ddof=1, keepdims=True) + 1e-6
    return (pred.reshape(pixels.shape) * deviation + mean).reshape(hidden.shape)
