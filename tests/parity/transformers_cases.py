"""Runs golden cases of transformers' VideoMAE through our code: its names, its epsilons."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden import Case, Comparison
from videomae_cases import compare, grid_of_clip, imported, patch_shape, positions

from vmae_jax.convert.videomae import transformers_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.positions import add_positions
from vmae_jax.models.stack import run_stack
from vmae_jax.models.vit import Classifier
from vmae_jax.ops import losses
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.pos_embed import sincos_table
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.ops.tokens import gather
from vmae_jax.variants import StackSpec

_PORTS_EPS = 1e-5  # of the norms before the heads, whatever the port's config says


def pretrain(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    clip, grid, tubelet, channels = _clip(inputs, weights)
    hidden = inputs["bool_masked_pos"].astype(bool)
    visible_idx, target_idx = positions(~hidden), positions(hidden)
    pixels = clip * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    net = functional(
        lambda rngs: MaskedAutoencoder(
            _spec(config),
            _spec(config, "decoder_"),
            values=int(np.prod(tubelet)) * channels,
            encoder_options=_options(config),
            decoder_norm_eps=_PORTS_EPS,
            rngs=rngs,
        )
    )
    table = transformers_table(tubelet, channels)

    def run(params):
        module = net.module(params)
        patches = gather(patchify(jnp.asarray(clip), tubelet), visible_idx)
        first, last = _hidden(module.encoder, patches, grid, visible_idx)
        pred = module(patches, visible_idx, target_idx, grid=grid)
        target = losses.pixel_targets(
            gather(patchify(jnp.asarray(pixels), tubelet), target_idx),
            channels=channels,
            normalize=config["norm_pix_loss"],
        )
        total, count = losses.masked_mse(pred, target, jnp.ones(pred.shape[:2], bool))
        outputs = {"logits": pred, "hidden_first": first, "hidden_last": last}
        return total / count, outputs | {"loss": total / count}

    compare(case, result, run, imported(weights, table, net), table)


def classification(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    clip, grid, tubelet, channels = _clip(inputs, weights)
    net = functional(
        lambda rngs: Classifier(
            _spec(config),
            _options(config),
            values=int(np.prod(tubelet)) * channels,
            num_classes=config["num_labels"],
            pooling="mean" if config["use_mean_pooling"] else "first",
            pooled_eps=_PORTS_EPS,
            rngs=rngs,
        )
    )
    table = transformers_table(tubelet, channels)

    def run(params):
        module = net.module(params)
        patches = patchify(jnp.asarray(clip), tubelet)
        first, last = _hidden(module.encoder, patches, grid)
        logits = module(patches, grid=grid)
        total, count = losses.cross_entropy(logits, jnp.asarray(inputs["labels"], jnp.int32))
        outputs = {"logits": logits, "hidden_first": first, "hidden_last": last}
        return total / count, outputs | {"loss": total / count}

    compare(case, result, run, imported(weights, table, net), table)


def _clip(inputs, weights):
    name = "videomae.embeddings.patch_embeddings.projection.weight"
    tubelet, channels = patch_shape(weights[name])
    clip = rearrange(inputs["pixel_values"], "b t c h w -> b t h w c")
    return clip, grid_of_clip(clip, tubelet), tubelet, channels


def _hidden(encoder, patches, grid, idx=None):
    """Tokens before the first block and after the last, without the final norm."""
    table = sincos_table(int(np.prod(grid)), encoder.patch_embed.kernel[...].shape[1])
    first = add_positions(encoder.patch_embed(patches), table, idx)
    return first, run_stack(encoder.blocks, first, encoder.options)


def _spec(config, prefix: str = "") -> StackSpec:
    width = config[f"{prefix}hidden_size"]
    return StackSpec(
        width=width,
        depth=config[f"{prefix}num_hidden_layers"],
        heads=config[f"{prefix}num_attention_heads"],
        mlp_ratio=config[f"{prefix}intermediate_size"] / width,
    )


def _options(config) -> StackOptions:
    return StackOptions(
        qkv_bias=config["qkv_bias"],
        eps=config["layer_norm_eps"],
        attention="xla_f32",
        remat="none",  # changes no number, and compiles faster
    )
