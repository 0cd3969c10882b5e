"""Names of MAE-ST checkpoints: those of its repository, of PySlowFast, and hosted between the two.

Encoders are named alike everywhere, with one projection to queries, keys and values or with three.
The decoder has the repository's names, or PySlowFast's, under which the published weights have it.
"""

from collections.abc import Collection

from vmae_jax.convert.engine import (
    POSITIONS,
    TOKEN,
    TRANSPOSED,
    Rule,
    Table,
    linear_rules,
    norm_rules,
)
from vmae_jax.convert.videomae import PREFIXES, patch_embed
from vmae_jax.ops.patches import Tubelet

LICENCE = (
    "the MAE-ST repository's weights: CC BY-NC 4.0 (not for commercial use); PySlowFast's: "
    "Apache 2.0. The two share their names, so look at where the file came from"
)
# Any of these beside a video model's patch embedding tells MAE-ST from VideoMAE.
_MARKS = {"cls_token", "pos_embed_spatial", "blocks.0.attn.q.weight"}
_SLOWFAST_DECODER = "pred_head.transforms.0"
REPOSITORY, SLOWFAST = "MAE-ST", "MAE-ST (PySlowFast)"  # names of the tables


def is_mae_st(names: Collection[str]) -> bool:
    """Whether foreign names, without wrappers' prefixes, are MAE-ST's."""
    multiscale = any(".pool_" in name or ".rel_pos_" in name for name in names)
    return not multiscale and not _MARKS.isdisjoint(names)


def of_repository(paths: Collection[str]) -> bool:
    """Whether a pretraining network, by our paths, is the repository's rather than PySlowFast's.

    Its decoder has a class token and tables of space and of time of its own; PySlowFast's has the
    encoder's class token and one table.
    """
    return "decoder/cls_token" in paths or "decoder/pos_embed_spatial" in paths


def table_of_names(names: Collection[str], tubelet: Tubelet, channels: int = 3) -> Table:
    """The table for a file with these names, wrappers' prefixes stripped."""
    begins = f"{_SLOWFAST_DECODER}."
    numbers = {name.removeprefix(begins).split(".")[0] for name in names if name.startswith(begins)}
    classifier = any(name.startswith("head.") for name in names)
    return mae_st_table(
        tubelet,
        channels,
        norm="fc_norm" if classifier else "encoder/norm",
        slowfast_blocks=len(numbers) - 1 if numbers else None,
    )


def table_of_paths(paths: Collection[str], blocks: int, tubelet: Tubelet, channels: int) -> Table:
    """The table in which arrays of ours, with these paths, are released.

    Args:
      paths: ours.
      blocks: of the decoder, if there is one.
      tubelet, channels: of the patch embedding.
    """
    slowfast = "decoder/head/kernel" in paths and not of_repository(paths)
    return mae_st_table(
        tubelet,
        channels,
        norm="fc_norm" if "fc_norm/scale" in paths else "encoder/norm",
        slowfast_blocks=blocks if slowfast else None,
    )


def mae_st_table(
    tubelet: Tubelet, channels: int = 3, *, norm: str, slowfast_blocks: int | None = None
) -> Table:
    """A checkpoint of MAE-ST <-> `MaskedAutoencoder` or `Classifier`.

    Args:
      tubelet: (frames, rows, columns) of a patch; undoes the flattening of the patch embedding.
      channels: of the input video.
      norm: where the norm behind the last block goes: a classifier applies it to what is pooled.
      slowfast_blocks: blocks of a decoder in PySlowFast's names, whose norm has the number after
        theirs; None: the repository's names.
    """
    if slowfast_blocks is None:
        decoder = (
            *_block_rules("decoder_blocks.{i}", "decoder/blocks"),
            *norm_rules("decoder_norm", "decoder/norm"),
            *linear_rules("decoder_pred", "decoder/head"),
        )
    else:
        decoder = (
            *_block_rules(f"{_SLOWFAST_DECODER}.{{i}}", "decoder/blocks"),
            *norm_rules(f"{_SLOWFAST_DECODER}.{slowfast_blocks}", "decoder/norm"),
            *linear_rules("pred_head.projections.0", "decoder/head"),
        )
    return Table(
        name=REPOSITORY if slowfast_blocks is None else SLOWFAST,
        rules=(
            Rule(
                "patch_embed.proj.weight",
                "encoder/patch_embed/kernel",
                patch_embed(tubelet, channels),
            ),
            Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
            Rule("cls_token", "encoder/cls_token", TOKEN),
            *_position_rules("pos_embed", "encoder/pos_embed"),
            *_block_rules("blocks.{i}", "encoder/blocks"),
            *norm_rules("norm", norm),
            *linear_rules("head", "head"),
            *linear_rules("head.projection", "head"),  # PySlowFast's
            *linear_rules("decoder_embed", "encoder_to_decoder"),
            Rule("mask_token", "mask_token", TOKEN),
            Rule("decoder_cls_token", "decoder/cls_token", TOKEN),
            *_position_rules("decoder_pos_embed", "decoder/pos_embed"),
            *decoder,
        ),
        prefixes=PREFIXES,
    )


def _position_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(theirs, ours, POSITIONS),
        Rule(f"{theirs}_spatial", f"{ours}_spatial", POSITIONS),
        Rule(f"{theirs}_temporal", f"{ours}_temporal", POSITIONS),
        Rule(f"{theirs}_class", f"{ours}_class", TOKEN),
    )


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    attention, biases = f"{theirs}.attn", tuple(f"{ours}/attn/{x}_bias" for x in "qkv")
    projections = tuple(f"{attention}.{x}.weight" for x in "qkv")
    return (
        *norm_rules(f"{theirs}.norm1", f"{ours}/norm1"),
        Rule(projections, f"{ours}/attn/qkv/kernel", TRANSPOSED),
        *(Rule(f"{attention}.{x}.bias", bias) for x, bias in zip("qkv", biases, strict=True)),
        Rule(f"{attention}.qkv.weight", f"{ours}/attn/qkv/kernel", TRANSPOSED),
        Rule(f"{attention}.qkv.bias", biases),
        *linear_rules(f"{attention}.proj", f"{ours}/attn/proj"),
        *norm_rules(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear_rules(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    )
