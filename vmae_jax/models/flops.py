"""Analytic cost of the networks: multiply-accumulates (MACs) of the matmuls, per clip.

Papers print MACs as "FLOPs". Training FLOPs, for utilisation, are counted from these by
`training_flops`. Compilers' own counts are not used: they count the body of a scan once.
"""

import math

from vmae_jax.models.mvit import BlockShape, block_shapes
from vmae_jax.ops.patches import Grid
from vmae_jax.variants import MViTSpec, StackSpec


def stack_macs(spec: StackSpec, tokens: int) -> int:
    """Blocks over `tokens` tokens: qkv, scores, weighted values, projection, MLP."""
    inner = spec.heads * (spec.width // spec.heads)
    linear = 4 * spec.width * inner + 2 * spec.width * int(spec.width * spec.mlp_ratio)
    return spec.depth * (tokens * linear + 2 * tokens * tokens * inner)


def mae_macs(
    encoder: StackSpec,
    decoder: StackSpec,
    *,
    visible: int,
    targets: int,
    values: int,
    target_values: int | None = None,
    embedded: int | None = None,
    class_tokens: int = 0,
    decoder_class_tokens: int = 0,
    masks_in_encoder: bool = False,
) -> dict[str, int]:
    """Forward MACs of `MaskedAutoencoder` by part.

    Args:
      visible: V, tokens of the encoder.
      targets: M, tokens predicted by the decoder.
      values: P, numbers in a patch.
      target_values: numbers predicted per token; None: P.
      embedded: tokens that go through the patch embedding; None: the visible ones, which is what
        this code does. The papers embed all tokens before dropping the hidden ones.
      class_tokens, decoder_class_tokens: that go through the stacks beside these.
      masks_in_encoder: mask tokens go through the encoder already.

    Returns:
      {"patch_embed", "encoder", "encoder_to_decoder", "decoder", "head"} -> MACs of one clip.
    """
    embedded = visible if embedded is None else embedded
    target_values = values if target_values is None else target_values
    encoded = visible + targets if masks_in_encoder else visible
    return {
        "patch_embed": embedded * values * encoder.width,
        "encoder": stack_macs(encoder, encoded + class_tokens),
        "encoder_to_decoder": encoded * encoder.width * decoder.width,
        "decoder": stack_macs(decoder, visible + targets + decoder_class_tokens),
        "head": targets * decoder.width * target_values,
    }


def classifier_macs(
    spec: StackSpec, *, tokens: int, class_tokens: int = 0, values: int, num_classes: int
) -> dict[str, int]:
    """Forward MACs of `Classifier` by part, for one view of `tokens` patches."""
    return {
        "patch_embed": tokens * values * spec.width,
        "encoder": stack_macs(spec, tokens + class_tokens),
        "head": spec.width * num_classes,
    }


def image_tower_macs(
    spec: StackSpec, *, frames: int, patches: int, values: int, layers: int, output: int
) -> dict[str, int]:
    """Forward MACs of `ImageTower` by part.

    Args:
      spec: size.
      frames: that it looks at, one by one; of patches that are several frames deep, their number.
      patches: of a frame.
      values: P, numbers in a patch.
      layers: whose patches are projected.
      output: width of the projection.
    """
    return {
        "patch_embed": frames * patches * values * spec.width,
        "encoder": frames * stack_macs(spec, 1 + patches),
        "proj": frames * layers * patches * spec.width * output,
    }


def training_flops(macs: dict[str, int]) -> int:
    """FLOPs of one training step per clip: 2 per MAC; backward costs twice the forward.

    Except for the patch embedding, whose input needs no gradient. Recomputation is not counted.
    """
    return 6 * sum(macs.values()) - 2 * macs["patch_embed"]


def mvit_macs(spec: MViTSpec, grid: Grid, *, channels: int, class_tokens: int) -> dict[str, int]:
    """Forward MACs of `MViT` by part, for one clip.

    Args:
      spec: size.
      grid: tokens of the stem along (time, height, width).
      channels: of the video.
      class_tokens: tokens beside those of the grid.

    Returns:
      {"patch_embed", "encoder"} -> MACs.
    """
    window = math.prod(spec.pool_kernel)
    return {
        "patch_embed": math.prod(grid) * math.prod(spec.stem_kernel) * channels * spec.width,
        "encoder": sum(
            _multiscale_macs(shape, class_tokens, window) for shape in block_shapes(spec, grid)
        ),
    }


def _multiscale_macs(shape: BlockShape, front: int, window: int) -> int:
    """qkv, pooling, scores, weighted values, relative positions, projections, MLP."""
    tokens, queries, keys = (
        math.prod(grid) for grid in (shape.grid, shape.grid_out, shape.kv_grid)
    )
    inner, out = shape.inner, queries + front
    macs = (tokens + front) * shape.width * 3 * inner
    macs += window * inner * (queries + 2 * keys)
    macs += 2 * out * (keys + front) * inner + queries * inner * sum(shape.kv_grid)
    macs += out * inner * inner + out * shape.hidden * (inner + shape.width_out)
    if inner != shape.width:
        macs += (tokens + front) * shape.width * inner
    if shape.width_out != inner:
        macs += out * inner * shape.width_out
    return macs
