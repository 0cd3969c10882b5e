"""Names of CLIP's image towers: as released, taken out of such a file, and transformers'."""

from collections.abc import Collection

from einops import rearrange

from vmae_jax.convert.engine import (
    TRANSPOSED,
    Arrays,
    ConversionError,
    Layout,
    Rule,
    Table,
    linear_rules,
    norm_rules,
)
from vmae_jax.convert.videomae import PREFIXES
from vmae_jax.ops.patches import Tubelet

LICENCE = (
    "CLIP's code: MIT; its model card puts deployment out of scope. Where others trained the "
    "weights, their terms hold"
)
# Patch embedding -> class token and projection, which only such a tower has beside it.
EMBEDDINGS = {
    "visual.conv1.weight": ("visual.class_embedding", "visual.proj"),
    "conv1.weight": ("class_embedding", "proj"),
    "vision_model.embeddings.patch_embedding.weight": (
        "vision_model.embeddings.class_embedding",
        "visual_projection.weight",
    ),
}
_TEXT = "of the text tower"
_COMPARISON = "of the comparison between pictures and texts"


def is_tower(paths: Collection[str]) -> bool:
    """Whether arrays with these paths of ours are an image tower's."""
    return "norm_pre/scale" in paths


def tower_table(embedding: str, source: Arrays) -> Table:
    """The table for a file with such a patch embedding.

    Args:
      embedding: name of the patch embedding, in `EMBEDDINGS`.
      source: its arrays by names without wrappers' prefixes.

    Raises:
      ConversionError: another network than a vision transformer with a projection.
    """
    if missing := [name for name in EMBEDDINGS[embedding] if name not in source]:
        raise ConversionError(
            f"beside {embedding} there is no {' and no '.join(missing)}: this is no vision "
            "transformer of CLIP with all its parts (of transformers, CLIPModel and "
            "CLIPVisionModelWithProjection have them)"
        )
    tubelet, channels = patch_shape(source[embedding])
    if embedding.startswith("vision_model."):
        return transformers_table(tubelet, channels)
    return clip_table(tubelet, channels, embedding.removesuffix("conv1.weight"))


def patch_shape(weight) -> tuple[Tubelet, int]:
    """(tubelet, channels) of a convolution over single frames, or over several.

    Raises:
      ConversionError: it is neither.
    """
    if weight.ndim not in (4, 5):
        raise ConversionError(f"a convolution of shape {weight.shape}; expected four axes or five")
    return (1, *weight.shape[2:])[-3:], weight.shape[1]


def clip_table(tubelet: Tubelet, channels: int = 3, base: str = "") -> Table:
    """The tower as CLIP's code names it <-> `ImageTower`.

    Args:
      tubelet: (frames, rows, columns) of a patch; undoes the flattening of the patch embedding.
      channels: of the pictures.
      base: what precedes the tower's names: "visual." beside a text tower, "" where it was taken
        out.
    """
    block = f"{base}transformer.resblocks.{{i}}"
    biases = tuple(f"blocks/attn/{x}_bias" for x in "qkv")
    text = r"transformer\..*|token_embedding\..*|positional_embedding|ln_final\..*|text_projection"
    ignored = (
        (text, _TEXT),
        ("logit_scale", _COMPARISON),
        ("input_resolution|context_length|vocab_size", "a size, no weight"),
    )
    return Table(
        name="CLIP" if base else "CLIP's image tower",
        rules=(
            Rule(f"{base}conv1.weight", "patch_embed/kernel", _convolution(tubelet, channels)),
            Rule(f"{base}class_embedding", "cls_token"),
            Rule(f"{base}positional_embedding", "pos_embed"),
            *norm_rules(f"{base}ln_pre", "norm_pre"),
            *norm_rules(f"{block}.ln_1", "blocks/norm1"),
            Rule(f"{block}.attn.in_proj_weight", "blocks/attn/qkv/kernel", TRANSPOSED),
            Rule(f"{block}.attn.in_proj_bias", biases),
            *linear_rules(f"{block}.attn.out_proj", "blocks/attn/proj"),
            *norm_rules(f"{block}.ln_2", "blocks/norm2"),
            *linear_rules(f"{block}.mlp.c_fc", "blocks/mlp/fc1"),
            *linear_rules(f"{block}.mlp.c_proj", "blocks/mlp/fc2"),
            *norm_rules(f"{base}ln_post", "norm"),
            Rule(f"{base}proj", "proj/kernel"),
        ),
        ignored=ignored if base else (),
        prefixes=PREFIXES,
    )


def transformers_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """The same in the names of transformers' CLIPModel and CLIPVisionModelWithProjection."""
    base, block = "vision_model.", "vision_model.encoder.layers.{i}"
    embedding, attention = f"{base}embeddings.patch_embedding.weight", f"{block}.self_attn"
    projections = tuple(f"{attention}.{x}_proj.weight" for x in "qkv")
    return Table(
        name="transformers' CLIP",
        rules=(
            Rule(embedding, "patch_embed/kernel", _convolution(tubelet, channels)),
            Rule(f"{base}embeddings.class_embedding", "cls_token"),
            Rule(f"{base}embeddings.position_embedding.weight", "pos_embed"),
            *norm_rules(f"{base}pre_layrnorm", "norm_pre"),  # spelt like that
            *norm_rules(f"{block}.layer_norm1", "blocks/norm1"),
            Rule(projections, "blocks/attn/qkv/kernel", TRANSPOSED),
            *(Rule(f"{attention}.{x}_proj.bias", f"blocks/attn/{x}_bias") for x in "qkv"),
            *linear_rules(f"{attention}.out_proj", "blocks/attn/proj"),
            *norm_rules(f"{block}.layer_norm2", "blocks/norm2"),
            *linear_rules(f"{block}.mlp.fc1", "blocks/mlp/fc1"),
            *linear_rules(f"{block}.mlp.fc2", "blocks/mlp/fc2"),
            *norm_rules(f"{base}post_layernorm", "norm"),
            Rule("visual_projection.weight", "proj/kernel", TRANSPOSED),
        ),
        ignored=(
            (r"text_model\..*|text_projection\.weight", _TEXT),
            ("logit_scale", _COMPARISON),
            (r"vision_model\.embeddings\.position_ids", "the numbers of the positions"),
        ),
        prefixes=PREFIXES,
    )


def _convolution(tubelet: Tubelet, channels: int) -> Layout:
    """A convolution without or with an axis of frames <-> a matrix on patches of pixels.

    As released, the axis is left out where a patch is one frame deep.
    """
    frames, rows, columns = tubelet
    deep = "w c t y x" if frames > 1 else "w c y x"
    flat = "(t y x c) w" if frames > 1 else "(y x c) w"
    sides = {"t": frames} if frames > 1 else {}

    def to_ours(weight):
        if weight.ndim == 5 and frames == 1:
            weight = weight[:, :, 0]
        return rearrange(weight, f"{deep} -> {flat}")

    def to_theirs(kernel):
        return rearrange(kernel, f"{flat} -> {deep}", y=rows, x=columns, c=channels, **sides)

    return Layout(to_ours, to_theirs)
