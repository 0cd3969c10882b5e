"""MaskFeat: predict features of hidden blocks of a clip, its histograms of oriented gradients.

The encoder sees all tokens, with one learned token in the place of those that are hidden. How many
are hidden varies from clip to clip; every token is predicted, and weights pick those that count.

Source: MaskFeat (arXiv:2112.09133) and its released code, which averages over the hidden tokens of
each device's clips and then over devices; here it is the mean over those of the global batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import clip_grid, feature_tubelet, mask_cells, mvit_spec, patch_values
from vmae_jax.models import flops
from vmae_jax.models.functional import Functional, functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.maskfeat import MaskedFeatures
from vmae_jax.models.mvit import MViT
from vmae_jax.models.vit import ViTEncoder
from vmae_jax.ops.block_masks import cell_masks, to_tokens
from vmae_jax.ops.glyphs import glyphs
from vmae_jax.ops.hog import hog_targets
from vmae_jax.ops.losses import Ratio, masked_mse, whole_patch_targets
from vmae_jax.ops.patches import patchify, unpatchify
from vmae_jax.ops.preprocess import denormalise, normalise, unit_range
from vmae_jax.systems.base import Batch, Encoder, Params, System
from vmae_jax.systems.inputs import clip_spec, clips, drawn_flips, stream
from vmae_jax.systems.multiscale import mvit_encoder, mvit_fields, mvit_macs, mvit_options
from vmae_jax.systems.stacks import (
    spec_of,
    stack_options,
    vit_encoder,
    vit_fields,
    vit_tokens,
)

Pictures = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
      values: numbers of a token.
      of: `video -> float32 [B, N, values]`, of clips uint8 [B, T, H, W, C].
      pictures: `(video, pred, hidden) -> {label: videos}` with predictions [B, N, values] and what
        is hidden, bool [B, T, H, W, 1]; videos float32 [B, T, H, W, C] in [0, 1].
    """

    values: int
    of: Callable[[jax.Array], jax.Array]
    pictures: Callable[[jax.Array, jax.Array, jax.Array], Pictures]


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    cells, stem_grid = mask_cells(config), clip_grid(config)
    grid = clip_grid(config, feature_tubelet(config))
    target = {"hog": hog_target, "pixels": pixel_target}[config.masking.target](config)
    parts = {"mvit": mvit_parts, "vit": vit_parts}[config.model.architecture](config, chip)
    network = make_network(parts, target.values)
    kind, ratio = config.masking.encoder
    macs = parts.macs | {"head": math.prod(grid) * parts.width * target.values}

    def masks(keys: jax.Array) -> jax.Array:
        return cell_masks(stream(keys, 0), kind=kind, ratio=ratio, cells=cells)

    def seen(video: jax.Array) -> jax.Array:
        video = normalise(video, mean=config.data.mean, std=config.data.std)
        return parts.seen(video.astype(config.model.dtype))

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds masks, and the features of all patches of the clips as they are seen."""
        video = clips(config, batch, drawn_flips(config, stream(keys, 2)))
        mask = masks(keys)
        return {
            "seen": seen(video),
            "hidden": to_tokens(mask, stem_grid),
            "target": target.of(video),
            "weight": to_tokens(mask, grid).astype(jnp.float32),
        }

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        keys = stream(keys, 3) if train else None
        pred = network.apply(params, batch["seen"], batch["hidden"], keys=keys, **parts.called_with)
        return masked_mse(pred, batch["target"], batch["weight"]), {}

    def reconstruct(params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> Pictures:
        """Videos to look at."""
        video, mask = clips(config, batch), masks(keys)
        hidden = to_tokens(mask, stem_grid)
        pred = network.apply(params, seen(video), hidden, **parts.called_with)
        shape = video.shape[1:4]
        hidden = to_tokens(mask, shape).reshape(-1, *shape, 1)
        original = unit_range(video)
        return {
            "original": original,
            "masked": jnp.where(hidden, 0.5, original),
            **target.pictures(video, pred.astype(jnp.float32), hidden),
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
        encoder=parts.encoder,
        choices={"encoder attention": parts.options.attention},
        reconstruct=reconstruct,
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """What MaskFeat knows of its encoder.

    Attributes:
      build: makes the module from a source of keys.
      options: how its blocks are built and run.
      stem_width, width: of its tokens at the stem and after its last block.
      class_token: whether it has one in front of the others.
      seen: normalised clips [B, T, H, W, C] -> what it takes.
      called_with: further arguments of its call.
      macs: forward multiply-accumulates per clip, by part.
      encoder: for whoever asks a system no more.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    options: StackOptions
    stem_width: int
    width: int
    class_token: bool
    seen: Callable[[jax.Array], jax.Array]
    called_with: Mapping[str, Any]
    macs: Mapping[str, int]
    encoder: Encoder


def mvit_parts(config: ConfigDict, chip: Chip) -> Parts:
    """The multiscale network, for videos."""
    spec, options = mvit_spec(config), mvit_options(config)
    encoder = mvit_encoder(config, final_norm=False)
    return Parts(
        build=lambda rngs: MViT(spec, options, rngs=rngs, **mvit_fields(config)),
        options=options,
        stem_width=spec.width,
        width=encoder.width(encoder.depth),
        class_token=config.model.class_token,
        seen=lambda video: video,
        called_with={},
        macs=mvit_macs(config),
        encoder=encoder,
    )


def vit_parts(config: ConfigDict, chip: Chip) -> Parts:
    """The plain network, for images."""
    spec, values = spec_of(config.model.encoder), patch_values(config)
    options = stack_options(config, "model.encoder", tokens=vit_tokens(config), chip=chip)
    grid = clip_grid(config)
    return Parts(
        build=lambda rngs: ViTEncoder(
            spec, options, values=values, final_norm=False, rngs=rngs, **vit_fields(config)
        ),
        options=options,
        stem_width=spec.width,
        width=spec.width,
        class_token=config.model.class_token,
        seen=lambda video: patchify(video, tuple(config.model.tubelet)),
        called_with={"grid": grid},
        macs={
            "patch_embed": math.prod(grid) * values * spec.width,
            "encoder": flops.stack_macs(spec, vit_tokens(config)),
        },
        encoder=vit_encoder(config, chip, final_norm=False),
    )


def make_network(parts: Parts, values: int) -> Functional:
    """The network alone, as pure functions; it predicts so many values for a token."""
    return functional(
        lambda rngs: MaskedFeatures(
            parts.build(rngs),
            class_token=parts.class_token,
            stem_width=parts.stem_width,
            width=parts.width,
            values=values,
            options=parts.options,
            rngs=rngs,
        )
    )


def hog_target(config: ConfigDict) -> Target:
    """Histograms of oriented gradients of each patch's first frame.

    Of pixels as they are: normalising a colour changes no histogram, but rounds gradients.
    """
    tubelet, channels = feature_tubelet(config), config.model.channels
    bins, cell = config.masking.hog_bins, config.masking.hog_cell
    slots, rows, _ = clip_grid(config, tubelet)
    in_patch = {"i": tubelet[1] // cell, "j": tubelet[2] // cell}

    def of(video: jax.Array) -> jax.Array:
        return hog_targets(video, tubelet, bins=bins, cell=cell)

    def drawn(vectors: jax.Array) -> jax.Array:
        histograms = rearrange(
            vectors,
            "b (t h w) (c k i j) -> b t c k (h i) (w j)",
            t=slots,
            h=rows,
            c=channels,
            **in_patch,
        )
        return jnp.repeat(glyphs(histograms, cell=cell), tubelet[0], axis=1)

    def pictures(video: jax.Array, pred: jax.Array, hidden: jax.Array) -> Pictures:
        original = drawn(of(video))
        return {
            "histograms of gradients": original,
            "prediction, dark = not hidden": jnp.where(hidden, drawn(pred), 0.3 * original),
        }

    return Target(channels * bins * math.prod(in_patch.values()), of, pictures)


def pixel_target(config: ConfigDict) -> Target:
    """Normalised pixels of each patch's first frame, standardised over the patch.

    In the order (row, column, channel). Source: the ablation in MaskFeat's released code.
    """
    tubelet, channels = feature_tubelet(config), config.model.channels
    patch, grid = (1, *tubelet[1:]), clip_grid(config, tubelet)
    constants = {"mean": config.data.mean, "std": config.data.std}

    def patches(video: jax.Array) -> jax.Array:
        return patchify(normalise(video[:, :: tubelet[0]], **constants), patch)

    def of(video: jax.Array) -> jax.Array:
        return whole_patch_targets(patches(video), normalize=True)

    def pictures(video: jax.Array, pred: jax.Array, hidden: jax.Array) -> Pictures:
        def filled(values: jax.Array) -> jax.Array:
            pixels = jnp.repeat(unpatchify(values, grid, patch, channels), tubelet[0], axis=1)
            return jnp.clip(jnp.where(hidden, pixels, unit_range(video)), 0.0, 1.0)

        true = patches(video)
        deviation = jnp.sqrt(true.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        borrowed = pred * deviation + true.mean(axis=-1, keepdims=True)
        return {
            "raw prediction, grey = patch mean": filled(0.5 + 0.2 * pred),
            "prediction with true patch statistics": filled(denormalise(borrowed, **constants)),
        }

    return Target(math.prod(patch) * channels, of, pictures)
