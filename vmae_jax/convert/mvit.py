"""Names of PySlowFast's multiscale transformers: MaskFeat's pretraining and what is fine-tuned.

The supervised MViTv2 of the same code has the same names, with the width growing in the attention.
"""

from einops import rearrange

from vmae_jax.convert.engine import (
    POSITIONS,
    TOKEN,
    Arrays,
    Layout,
    Rule,
    Table,
    linear_rules,
    norm_rules,
)
from vmae_jax.convert.videomae import PREFIXES

LICENCE = (
    "PySlowFast's code: Apache-2.0; no licence of the weights of its MaskFeat and MViTv2 is stated "
    "beside them"
)


def mvit_table(pooling: str = "mean") -> Table:
    """A PySlowFast checkpoint of MaskFeat or MViTv2 <-> `MViT` under a head.

    Args:
      pooling: of the classifier. The norm after the last block is that of the pooled vector
        ("mean") or of the tokens ("first"); their names do not tell them apart.
    """
    norm = {"mean": "fc_norm", "first": "encoder/norm"}[pooling]
    return Table(
        name="PySlowFast's MViT",
        rules=(
            Rule("patch_embed.proj.weight", "encoder/patch_embed/kernel", _CONVOLUTION),
            Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
            Rule("cls_token", "encoder/cls_token", TOKEN),
            Rule("pos_embed", "encoder/pos_embed", POSITIONS),
            Rule("pos_embed_spatial", "encoder/pos_embed_spatial", POSITIONS),
            Rule("pos_embed_temporal", "encoder/pos_embed_temporal", POSITIONS),
            Rule("pos_embed_class", "encoder/pos_embed_class", TOKEN),
            *_block_rules("blocks.{i}.", "encoder/blocks/{i}/"),
            *norm_rules("norm", norm),
            *linear_rules("head.projection", "head"),
            Rule("mask_token", "mask_token", TOKEN),
            *norm_rules("pred_head.transforms.0.0", "head/norm"),
            *linear_rules("pred_head.projections.0", "head/proj"),
        ),
        ignored=((r"hogs\.\d+\.weight_[xy]", "a constant of the gradients' histograms"),),
        prefixes=PREFIXES,
    )


def pooling_of(source: Arrays) -> str:
    """How the classifier of a foreign file pools, which the released recipes say of each network.

    Where the width grows in the attention it is the supervised MViTv2's, whose head sees the class
    token; else MaskFeat's, whose head sees the mean of the tokens.
    """
    shapes = [a.shape for name, a in source.items() if name.endswith(".attn.qkv.weight")]
    return "first" if any(rows != 3 * columns for rows, columns in shapes) else "mean"


def _block_rules(t: str, o: str) -> tuple[Rule, ...]:
    return (
        *norm_rules(f"{t}norm1", f"{o}norm1"),
        *linear_rules(f"{t}attn.qkv", f"{o}attn/qkv"),
        *linear_rules(f"{t}attn.proj", f"{o}attn/proj"),
        *(Rule(f"{t}attn.pool_{n}.weight", f"{o}attn/pool_{n}/kernel", _DEPTHWISE) for n in "qkv"),
        *(rule for n in "qkv" for rule in norm_rules(f"{t}attn.norm_{n}", f"{o}attn/norm_{n}")),
        *(Rule(f"{t}attn.rel_pos_{n}", f"{o}attn/rel_pos_{n}") for n in "thw"),
        *norm_rules(f"{t}norm2", f"{o}norm2"),
        *linear_rules(f"{t}mlp.fc1", f"{o}mlp/fc1"),
        *linear_rules(f"{t}mlp.fc2", f"{o}mlp/fc2"),
        *linear_rules(f"{t}proj", f"{o}proj"),
    )


_CONVOLUTION = Layout(
    lambda x: rearrange(x, "d c t h w -> t h w c d"),
    lambda x: rearrange(x, "t h w c d -> d c t h w"),
)
_DEPTHWISE = Layout(
    lambda x: rearrange(x, "c 1 t h w -> t h w c"), lambda x: rearrange(x, "t h w c -> c 1 t h w")
)
