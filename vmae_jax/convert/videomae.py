"""Names of VideoMAE and VideoMAE V2 checkpoints, released (the two share them) and transformers'.

Position tables are constants in all of them and never in a checkpoint, except for the learned table
of a fine-tuning model. Key biases do not exist: the released code adds a constant zero.
"""

import dataclasses
import functools

from einops import rearrange

from vmae_jax.convert.engine import (
    TRANSPOSED,
    ZERO,
    Arrays,
    ConversionError,
    Layout,
    Rule,
    Table,
    listed,
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
            *_encoder_rules("encoder.", tubelet, channels),
            Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
            Rule("mask_token", "mask_token", _MASK_TOKEN),
            *_block_rules("decoder.", "decoder/"),
            *_norm_rules("decoder.norm", "decoder/norm"),
            *_linear_rules("decoder.head", "decoder/head"),
        ),
        prefixes=PREFIXES,
    )


def finetune_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A released fine-tuned checkpoint <-> `Classifier`."""
    return Table(
        name="videomae fine-tuned",
        rules=(
            *_encoder_rules("", tubelet, channels),
            Rule("pos_embed", "encoder/pos_embed", _POSITIONS),
            *_norm_rules("fc_norm", "fc_norm"),
            *_linear_rules("head", "head"),
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
            Rule(f"{embed}.weight", "encoder/patch_embed/kernel", _patch_embed(tubelet, channels)),
            Rule(f"{embed}.bias", "encoder/patch_embed/bias"),
            *_transformers_block_rules(f"{base}encoder.layer", "encoder/blocks"),
            *_norm_rules(f"{base}layernorm", "encoder/norm"),
            Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
            Rule("mask_token", "mask_token", _MASK_TOKEN),
            *_transformers_block_rules("decoder.decoder_layers", "decoder/blocks"),
            *_norm_rules("decoder.norm", "decoder/norm"),
            *_linear_rules("decoder.head", "decoder/head"),
            *_norm_rules("fc_norm", "fc_norm"),
            *_linear_rules("classifier", "head"),
        ),
        prefixes=("module.", "_orig_mod."),
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """What the names of a foreign file tell.

    Attributes:
      table: its names.
      licence: what is known of it.
      tubelet: (frames, rows, columns) of a patch.
      channels: of the video.
    """

    table: Table
    licence: str
    tubelet: Tubelet
    channels: int


def recognise(source: Arrays) -> Family:
    """The family of a foreign file, judged by the name of its patch embedding.

    Raises:
      ConversionError: there is none, or it is not that of a video model.
    """
    bare = Table("", (), prefixes=PREFIXES)
    for name, array in source.items():
        if (stripped := bare.strip(name)) not in _EMBEDDINGS:
            continue
        make, licence = _EMBEDDINGS[stripped]
        if array.ndim != 5:
            raise ConversionError(
                f"{name} has the shape {array.shape}; that of a video model is a convolution over "
                "frames, rows and columns, with five axes"
            )
        tubelet, channels = tuple(array.shape[2:]), array.shape[1]
        return Family(make(tubelet, channels), licence, tubelet, channels)
    raise ConversionError(
        "none of the names is the patch embedding of a known family (released VideoMAE and "
        f"VideoMAE V2, transformers' VideoMAE); the first are {listed(list(source), 4)}"
    )


# Name of the patch embedding -> (maker of the table, what is known of the licence).
_EMBEDDINGS = {
    "encoder.patch_embed.proj.weight": (pretrain_table, _RELEASED),
    "patch_embed.proj.weight": (finetune_table, _RELEASED),
    "videomae.embeddings.patch_embeddings.projection.weight": (transformers_table, _PORTED),
    "embeddings.patch_embeddings.projection.weight": (
        functools.partial(transformers_table, base=""),
        _PORTED,
    ),
}


def _encoder_rules(prefix: str, tubelet: Tubelet, channels: int) -> tuple[Rule, ...]:
    return (
        Rule(
            f"{prefix}patch_embed.proj.weight",
            "encoder/patch_embed/kernel",
            _patch_embed(tubelet, channels),
        ),
        Rule(f"{prefix}patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *_block_rules(prefix, "encoder/"),
        *_norm_rules(f"{prefix}norm", "encoder/norm"),
    )


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    t, o = f"{theirs}blocks.{{i}}.", f"{ours}blocks/"
    return (
        *_norm_rules(f"{t}norm1", f"{o}norm1"),
        Rule(f"{t}attn.qkv.weight", f"{o}attn/qkv/kernel", TRANSPOSED),
        Rule(f"{t}attn.q_bias", f"{o}attn/q_bias"),
        Rule(f"{t}attn.v_bias", f"{o}attn/v_bias"),
        *_split_projections(f"{t}attn.", f"{o}attn/", ("q_proj", "k_proj", "v_proj")),
        Rule(f"{t}attn.qkv.bias", (f"{o}attn/q_bias", ZERO, f"{o}attn/v_bias")),
        Rule(f"{t}attn.scale", f"{o}attn/scale", _HEAD_SCALE),
        *_linear_rules(f"{t}attn.proj", f"{o}attn/proj"),
        *_norm_rules(f"{t}norm2", f"{o}norm2"),
        *_linear_rules(f"{t}mlp.fc1", f"{o}mlp/fc1"),
        *_linear_rules(f"{t}mlp.fc2", f"{o}mlp/fc2"),
        Rule(f"{t}gamma_1", f"{o}gamma_1"),
        Rule(f"{t}gamma_2", f"{o}gamma_2"),
    )


def _transformers_block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    t, o = f"{theirs}.{{i}}.", f"{ours}/"
    attention = f"{t}attention.attention."
    return (
        *_norm_rules(f"{t}layernorm_before", f"{o}norm1"),
        Rule(f"{attention}q_bias", f"{o}attn/q_bias"),
        Rule(f"{attention}v_bias", f"{o}attn/v_bias"),
        # From version 5 on, the biases belong to the projections.
        *_split_projections(attention, f"{o}attn/", ("query", "key", "value")),
        *_linear_rules(f"{t}attention.output.dense", f"{o}attn/proj"),
        *_norm_rules(f"{t}layernorm_after", f"{o}norm2"),
        *_linear_rules(f"{t}intermediate.dense", f"{o}mlp/fc1"),
        *_linear_rules(f"{t}output.dense", f"{o}mlp/fc2"),
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


def _norm_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def _linear_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def _patch_embed(tubelet: Tubelet, channels: int) -> Layout:
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


_MASK_TOKEN = Layout(lambda x: rearrange(x, "1 1 d -> d"), lambda x: rearrange(x, "d -> 1 1 d"))
_HEAD_SCALE = Layout(
    lambda x: rearrange(x, "heads 1 1 -> heads"), lambda x: rearrange(x, "heads -> heads 1 1")
)
_POSITIONS = Layout(lambda x: rearrange(x, "1 n d -> n d"), lambda x: rearrange(x, "n d -> 1 n d"))
