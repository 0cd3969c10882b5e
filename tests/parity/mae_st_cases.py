"""Runs golden cases of MAE-ST's repository through our code, in float32."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden import Case, Comparison
from videomae_cases import compare, grid_of_clip, imported, patch_shape

from vmae_jax.convert.families import recognise
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier
from vmae_jax.ops import losses, masking
from vmae_jax.ops.patches import patchify, target_frames
from vmae_jax.ops.tokens import gather
from vmae_jax.variants import StackSpec


def pretrain(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    tubelet, channels = patch_shape(weights["patch_embed.proj.weight"])
    clip = rearrange(inputs["clip"], "b c t h w -> b t h w c")
    grid = grid_of_clip(clip, tubelet)
    tokens = int(np.prod(grid))
    hidden = masking.num_hidden("agnostic", ratio=config["mask_ratio"], grid=grid)
    shuffled = np.argsort(inputs["noise"], axis=1)
    restore = np.argsort(shuffled, axis=1)
    visible_idx, target_idx = np.split(shuffled.astype(np.int32), [tokens - hidden], axis=1)

    kind = "all" if config["pred_t_dim"] == config["num_frames"] else "linspace"
    frames = target_frames(kind, frames=clip.shape[1], slots=grid[0])
    predicted = (len(frames) // grid[0], *tubelet[1:])
    raw = patchify(jnp.asarray(clip[:, frames]), predicted)
    target = losses.whole_patch_targets(raw, normalize=config["norm_pix_loss"])
    positions = "separable" if config["sep_pos_embed"] else "joint"
    net = functional(
        lambda rngs: MaskedAutoencoder(
            _spec(config),
            _spec(config, "decoder_"),
            values=int(np.prod(tubelet)) * channels,
            target_values=raw.shape[-1],
            encoder_options=_options(config),
            positions=positions,
            class_token=config["cls_embed"],
            grid=grid,
            decoder_positions=positions,
            decoder_class_token="own" if config["cls_embed"] else "none",
            to_decoder_bias=True,
            rngs=rngs,
        )
    )
    table = recognise(weights).table
    params = imported(weights, table, net)

    def run(params):
        module = net.module(params)
        patches = gather(patchify(jnp.asarray(clip), tubelet), visible_idx)
        latent = module.encode(patches, visible_idx, grid=grid)
        # The released decoder predicts visible tokens too, behind its class token.
        x = module.decoder_input(latent, visible_idx, target_idx, grid=grid)
        everywhere = module.decoder(x, tokens)
        pred = module.decode(latent, visible_idx, target_idx, grid=grid)
        total, count = losses.masked_mse(pred, gather(target, target_idx))
        outputs = {
            "encoder_latent": latent[:, 1:] if config["cls_embed"] else latent,
            "pred": gather(everywhere, restore.astype(np.int32)),
            "target_raw": raw,
            "target": target,
            "mask_out": restore >= tokens - hidden,
            "ids_restore": restore,
            "loss": total / count,
        }
        return outputs["loss"], outputs

    compare(case, result, run, params, table)


def finetune(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    tubelet, channels = patch_shape(weights["patch_embed.proj.weight"])
    clip = rearrange(inputs["clip"], "b c t h w -> b t h w c")
    grid = grid_of_clip(clip, tubelet)
    net = functional(
        lambda rngs: Classifier(
            _spec(config),
            _options(config),
            values=int(np.prod(tubelet)) * channels,
            num_classes=config["num_classes"],
            positions="separable" if config["sep_pos_embed"] else "joint",
            class_token=config["cls_embed"],
            grid=grid,
            rngs=rngs,
        )
    )
    table = recognise(weights).table
    params = imported(weights, table, net)

    def run(params):
        module = net.module(params)
        pooled = module.features(patchify(jnp.asarray(clip), tubelet), grid=grid)
        logits = module.logits(pooled)
        labels, soft = jnp.asarray(inputs["labels"], jnp.int32), jnp.asarray(inputs["soft_labels"])
        ratios = {
            "loss_ce": losses.cross_entropy(logits, labels),
            "loss_ls": losses.label_smoothing_cross_entropy(logits, labels, smoothing=0.1),
            "loss_soft": losses.soft_target_cross_entropy(logits, soft),
        }
        outputs = {name: total / weight for name, (total, weight) in ratios.items()}
        outputs |= {"pooled": pooled, "logits": logits}
        return outputs["loss_soft"], outputs

    compare(case, result, run, params, table)


def _spec(config, prefix: str = "") -> StackSpec:
    return StackSpec(
        width=config[f"{prefix}embed_dim"],
        depth=config[f"{prefix}depth"],
        heads=config[f"{prefix}num_heads"],
        mlp_ratio=config["mlp_ratio"],
    )


def _options(config) -> StackOptions:
    return StackOptions(
        key_bias=not config.get("no_qkv_bias", False),
        qkv_bias=not config.get("no_qkv_bias", False),
        eps=config["norm_layer_eps"],
        attention="xla_f32",
        remat="none",  # changes no number, and compiles faster
    )
