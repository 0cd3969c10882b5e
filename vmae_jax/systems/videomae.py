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
from vmae_jax.config import ConfigError, token_counts
from vmae_jax.models import flops
from vmae_jax.models.functional import Functional, functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.ops import masking
from vmae_jax.ops.attention import choose_attention
from vmae_jax.ops.losses import Ratio, masked_mse, pixel_targets
from vmae_jax.ops.patches import patchify, to_planes, unpatchify
from vmae_jax.ops.preprocess import draw_flips, mirror, normalise, unit_range
from vmae_jax.ops.resize import resized_crops
from vmae_jax.ops.tokens import gather, scatter
from vmae_jax.systems.base import ArraySpec, Batch, Params, System
from vmae_jax.variants import StackSpec


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    counts = token_counts(config)
    network = make_network(config, chip)
    macs = flops.mae_macs(
        _spec(config.model.encoder),
        _spec(config.model.decoder),
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
        flip_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        mirrored = draw_flips(flip_keys, 0.5 if config.data.flip else 0.0)
        patches = patchify(clips(batch, mirrored), tubelet, order="planes")
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

    def clips(batch: Batch, mirrored: jax.Array | None = None) -> jax.Array:
        """The clips as uint8 [B, T, H, W, C], cut out here where the host left that open."""
        if config.data.resize == "host":
            return mirror(batch["video"], mirrored)
        return resized_crops(
            batch["source"],
            batch["box"],
            size=config.data.size,
            resample=config.data.filter,
            mirrored=mirrored,
        )

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        drop_keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys) if train else None
        pred = network.apply(
            _for_planes(params, channels),
            batch["visible"],
            batch["visible_idx"],
            batch["target_idx"],
            grid=counts.grid,
            keys=drop_keys,
        )
        return masked_mse(pred, batch["target"], batch["weight"]), {}

    def reconstruct(params: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
        """Videos to look at; every hidden token is predicted, whatever the decoder mask."""
        masks = masking.pretraining_masks(keys, grid=counts.grid, encoder=config.masking.encoder)
        patches = patchify(clips(batch), tubelet)
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
        batch_spec=_batch_spec(config),
        compute_dtype=config.model.dtype,
        macs=macs,
        train_flops=flops.training_flops(macs),
        choices={
            f"{stack} attention": stack_options(config, stack, chip).attention
            for stack in ("encoder", "decoder")
        },
        reconstruct=reconstruct,
    )


def _batch_spec(config: ConfigDict) -> dict[str, ArraySpec]:
    frames, channels = config.data.frames, config.model.channels
    index = {"index": ArraySpec((), "int32")}
    if config.data.resize == "host":
        return {"video": ArraySpec((frames, *config.data.size, channels), "uint8"), **index}
    source = ArraySpec((frames, *config.data.canvas, channels), "uint8", config.data.repeats)
    return {"source": source, "box": ArraySpec((4,), "float32"), **index}


def make_network(config: ConfigDict, chip: Chip) -> Functional:
    """The network alone, as pure functions."""
    counts = token_counts(config)
    return functional(
        lambda rngs: MaskedAutoencoder(
            _spec(config.model.encoder),
            _spec(config.model.decoder),
            values=counts.patch_values,
            encoder_options=stack_options(config, "encoder", chip),
            decoder_options=stack_options(config, "decoder", chip),
            rngs=rngs,
        )
    )


def stack_options(config: ConfigDict, stack: str, chip: Chip) -> StackOptions:
    """How the blocks of one stack ("encoder" or "decoder") are built and run on a chip."""
    model, part = config.model, config.model[stack]
    return StackOptions(
        cosine_attention=model.cosine_attention,
        layer_scale=model.layer_scale,
        gelu=model.gelu,
        drop_path=part.drop_path,
        attention=_attention(config, stack, chip),
        dtype=model.dtype,
        remat=part.remat,
        scan=model.layers == "scan",
    )


def _attention(config: ConfigDict, stack: str, chip: Chip) -> str:
    part, counts = config.model[stack], token_counts(config)
    try:
        return choose_attention(
            part.attention,
            chip=chip,
            dtype=config.model.dtype,
            tokens=counts.visible + (counts.targets if stack == "decoder" else 0),
            heads=part.heads,
            head_dim=part.width // part.heads,
        )
    except ValueError as error:
        raise ConfigError(f"config.model.{stack}.attention: {error}") from error


def _spec(part: ConfigDict) -> StackSpec:
    return StackSpec(part.width, part.depth, part.heads, part.mlp_ratio)


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
