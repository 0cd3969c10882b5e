"""Names of PySlowFast's multiscale transformers: MaskFeat's pretraining and what is fine-tuned.

The supervised MViTv2 of the same code has the same names, with the width growing in the attention.
"""

import itertools
from collections.abc import Collection, Mapping

from einops import rearrange

from vmae_jax.convert.engine import (
    POSITIONS,
    TOKEN,
    Arrays,
    ConversionError,
    Layout,
    Rule,
    Table,
    blocks_of,
    linear_rules,
    norm_rules,
)
from vmae_jax.convert.videomae import PREFIXES
from vmae_jax.models.mvit import block_shapes
from vmae_jax.ops.patches import Grid
from vmae_jax.variants import MViTSpec

LICENCE = (
    "PySlowFast's code: Apache-2.0; no licence of the weights of its MaskFeat and MViTv2 is stated "
    "beside them"
)
# Steps of the stem in all released networks; its kernel, which is larger, does not tell them.
TUBELET = (2, 4, 4)


def is_mvit(names: Collection[str]) -> bool:
    """Whether foreign names, without wrappers' prefixes, are those of such a network."""
    return any(".attn.pool_q." in name for name in names)


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


def spec_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[MViTSpec, Grid]:
    """Size of a network and grid of its stem, as far as arrays by our paths tell them.

    The strides of queries are those of the released networks (halving the grid in each stage but
    the first, or not in the last, as in pretraining) under which tables of relative positions have
    the lengths that they have.

    Raises:
      ConversionError: there are none.
    """
    blocks = blocks_of(shapes)
    try:
        sizes = [
            {name: block[path] for name, path in _SIZES.items()}
            for _, block in sorted(blocks.items())
        ]
    except KeyError as error:
        raise ConversionError(
            f"a block has no {error.args[0]}: this is a multiscale network without the parts of "
            "MViTv2 (pooling of queries, keys and values, relative positions of time and space)"
        ) from error
    inner = [block["qkv"][1] // 3 for block in sizes]
    if grows := any(block["qkv"][0] != i for block, i in zip(sizes, inner, strict=True)):
        firsts = [n for n, block in enumerate(sizes) if block["qkv"][0] != inner[n]]
    else:
        firsts = [n + 1 for n, block in enumerate(sizes) if block["fc2"][1] != inner[n]]
    ends = [*firsts, len(sizes)]
    t, h, w = ((sizes[0][f"rel_pos_{axis}"][0] + 1) // 2 for axis in "thw")
    for halves in itertools.product((2, 1), repeat=len(firsts)):
        spec = MViTSpec(
            width=sizes[0]["qkv"][0],
            depths=tuple(end - first for first, end in zip([0, *firsts], ends, strict=True)),
            heads=inner[0] // sizes[0]["pool_q"][-1],
            mlp_ratio=sizes[0]["fc1"][1] / inner[0],
            strides=((1, 1, 1), *((1, half, half) for half in halves)),
            stem_kernel=shapes["encoder/patch_embed/kernel"][:3],
            pool_kernel=sizes[0]["pool_q"][:3],
            grow_in="attention" if grows else "mlp",
        )
        rows = [tuple(block[f"rel_pos_{axis}"][0] for axis in "thw") for block in sizes]
        if [shape.rows for shape in block_shapes(spec, (t, h, w))] == rows:
            return spec, (t, h, w)
    raise ConversionError(
        "the tables of relative positions have the lengths of no released network; give a config "
        "that says its strides (--config=config.json)"
    )


_SIZES = {
    "qkv": "attn/qkv/kernel",
    "pool_q": "attn/pool_q/kernel",
    "fc1": "mlp/fc1/kernel",
    "fc2": "mlp/fc2/kernel",
    **{f"rel_pos_{axis}": f"attn/rel_pos_{axis}" for axis in "thw"},
}


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
