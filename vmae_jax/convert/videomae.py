"""Names of VideoMAE and VideoMAE V2 checkpoints, released (the two share them) and transformers'.

Position tables are constants in all of them and never in a checkpoint, except for the learned table
of a fine-tuning model. Key biases do not exist: the released code adds a constant zero.
"""

import functools

from einops import rearrange

from vmae_jax.convert.engine import (
    POSITIONS,
    TOKEN,
    TRANSPOSED,
    ZERO,
    Layout,
    Rule,
    Table,
    linear_rules,
    norm_rules,
)
from vmae_jax.ops.patches import Tubelet

# A compiled, distributed or Hub-hosted model wraps the names, in any order.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_RELEASED = (
    "VideoMAE's weights: CC BY-NC 4.0 (not for commercial use); VideoMAE V2's: MIT, some on "
    "request. The two share their names, so look at where the file came from"
)

_PORTED = (
    "unknown: no model card beside the weights states one. What was converted or fine-tuned from "
    "VideoMAE's weights stays under CC BY-NC 4.0 (not for commercial use)"
)


def pretrain_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A released pretraining checkpoint <-> `MaskedAutoencoder`.

    Args:
      tubelet: (frames, rows, columns) of a patch; undoes the flattening of the patch embedding.
      channels: of the input video.
    """
    return Table(
        name="videomae pretraining",
        rules=(
            *encoder_rules("encoder.", tubelet, channels),
            Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
            Rule("mask_token", "mask_token", TOKEN),
            *_block_rules("decoder.", "decoder/"),
            *norm_rules("decoder.norm", "decoder/norm"),
            *linear_rules("decoder.head", "decoder/head"),
        ),
        prefixes=PREFIXES,
    )


def finetune_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A released fine-tuned checkpoint <-> `Classifier`."""
    return Table(
        name="videomae fine-tuned",
        rules=(
            *encoder_rules("", tubelet, channels),
            Rule("pos_embed", "encoder/pos_embed", POSITIONS),
            *norm_rules("fc_norm", "fc_norm"),
            *linear_rules("head", "head"),
        ),
        prefixes=PREFIXES,
    )


def transformers_table(tubelet: Tubelet, channels: int = 3, base: str = "videomae.") -> Table:
    """A checkpoint of transformers' VideoMAE classes <-> both of our networks.

    Args:
      tubelet, channels: as above.
      base: prefix of the encoder's names; "" in files of the bare `VideoMAEModel`.
    """
    embed = f"{base}embeddings.patch_embeddings.projection"
    return Table(
        name="transformers' VideoMAE",
        rules=(
            Rule(f"{embed}.weight", "encoder/patch_embed/kernel", patch_embed(tubelet, channels)),
            Rule(f"{embed}.bias", "encoder/patch_embed/bias"),
            *_transformers_block_rules(f"{base}encoder.layer", "encoder/blocks"),
            *norm_rules(f"{base}layernorm", "encoder/norm"),
            Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
            Rule("mask_token", "mask_token", TOKEN),
            *_transformers_block_rules("decoder.decoder_layers", "decoder/blocks"),
            *norm_rules("decoder.norm", "decoder/norm"),
            *linear_rules("decoder.head", "decoder/head"),
            *norm_rules("fc_norm", "fc_norm"),
            *linear_rules("classifier", "head"),
        ),
        prefixes=("module.", "_orig_mod."),
    )


# Name of the patch embedding -> (maker of the table, what is known of the licence).
EMBEDDINGS = {
    "encoder.patch_embed.proj.weight": (pretrain_table, _RELEASED),
    "patch_embed.proj.weight": (finetune_table, _RELEASED),
    "videomae.embeddings.patch_embeddings.projection.weight": (transformers_table, _PORTED),
    "embeddings.patch_embeddings.projection.weight": (
        functools.partial(transformers_table, base=""),
        _PORTED,
    ),
}


def encoder_rules(prefix: str, tubelet: Tubelet, channels: int) -> tuple[Rule, ...]:
    """Of an encoder, whose released names begin with `prefix`; the rest as in the tables above."""
    return (
        Rule(
            f"{prefix}patch_embed.proj.weight",
            "encoder/patch_embed/kernel",
            patch_embed(tubelet, channels),
        ),
        Rule(f"{prefix}patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *_block_rules(prefix, "encoder/"),
        *norm_rules(f"{prefix}norm", "encoder/norm"),
    )


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    t, o = f"{theirs}blocks.{{i}}.", f"{ours}blocks/"
    return (
        *norm_rules(f"{t}norm1", f"{o}norm1"),
        Rule(f"{t}attn.qkv.weight", f"{o}attn/qkv/kernel", TRANSPOSED),
        Rule(f"{t}attn.q_bias", f"{o}attn/q_bias"),
        Rule(f"{t}attn.v_bias", f"{o}attn/v_bias"),
        *_split_projections(f"{t}attn.", f"{o}attn/", ("q_proj", "k_proj", "v_proj")),
        Rule(f"{t}attn.qkv.bias", (f"{o}attn/q_bias", ZERO, f"{o}attn/v_bias")),
        Rule(f"{t}attn.scale", f"{o}attn/scale", _HEAD_SCALE),
        *linear_rules(f"{t}attn.proj", f"{o}attn/proj"),
        *norm_rules(f"{t}norm2", f"{o}norm2"),
        *linear_rules(f"{t}mlp.fc1", f"{o}mlp/fc1"),
        *linear_rules(f"{t}mlp.fc2", f"{o}mlp/fc2"),
        Rule(f"{t}gamma_1", f"{o}gamma_1"),
        Rule(f"{t}gamma_2", f"{o}gamma_2"),
    )


def _transformers_block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    t, o = f"{theirs}.{{i}}.", f"{ours}/"
    attention = f"{t}attention.attention."
    return (
        *norm_rules(f"{t}layernorm_before", f"{o}norm1"),
        Rule(f"{attention}q_bias", f"{o}attn/q_bias"),
        Rule(f"{attention}v_bias", f"{o}attn/v_bias"),
        # From version 5 on, the biases belong to the projections.
        *_split_projections(attention, f"{o}attn/", ("query", "key", "value")),
        *linear_rules(f"{t}attention.output.dense", f"{o}attn/proj"),
        *norm_rules(f"{t}layernorm_after", f"{o}norm2"),
        *linear_rules(f"{t}intermediate.dense", f"{o}mlp/fc1"),
        *linear_rules(f"{t}output.dense", f"{o}mlp/fc2"),
    )


def _split_projections(theirs: str, ours: str, names: tuple[str, str, str]) -> tuple[Rule, ...]:
    """Projections to queries, keys and values of their own, where ours is one."""
    q, k, v = (f"{theirs}{name}" for name in names)
    return (
        Rule((f"{q}.weight", f"{k}.weight", f"{v}.weight"), f"{ours}qkv/kernel", TRANSPOSED),
        Rule(f"{q}.bias", f"{ours}q_bias"),
        Rule(f"{k}.bias", (ZERO,)),
        Rule(f"{v}.bias", f"{ours}v_bias"),
    )


def patch_embed(tubelet: Tubelet, channels: int) -> Layout:
    """A convolution whose steps are its size <-> a matrix on patches in the order of pixels."""
    frames, rows, columns = tubelet

    def to_ours(weight):
        if weight.shape[1:] != (channels, *tubelet):
            raise ValueError(
                f"expected a convolution of {channels} channels over {tuple(tubelet)} "
                "(frames, rows, columns)"
            )
        return rearrange(weight, "d c t h w -> (t h w c) d")

    def to_theirs(kernel):
        return rearrange(
            kernel, "(t h w c) d -> d c t h w", t=frames, h=rows, w=columns, c=channels
        )

    return Layout(to_ours, to_theirs)


_HEAD_SCALE = Layout(
    lambda x: rearrange(x, "heads 1 1 -> heads"), lambda x: rearrange(x, "heads -> heads 1 1")
)
