"""Published sizes of the vision transformers: one table for every system and config."""

import dataclasses

# Of a classifier: mean of all tokens and then a norm, or a norm and then the first token.
POOLINGS = ("mean", "first")


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """Size of a stack of transformer blocks.

    Attributes:
      width: token width D.
      depth: number of blocks.
      heads: attention heads; divides the width.
      mlp_ratio: hidden width of the MLP is `int(width * mlp_ratio)`, truncated as released.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


# 48/11 is also the MLP ratio of ViT-g's decoder in the released code: int(512 * 48 / 11) = 2234
# hidden units, an odd width that the published file size confirms (the paper's table says 2048).
GIANT_MLP_RATIO = 48 / 11

# VideoMAE (arXiv:2203.12602), appendix; ViT-g: VideoMAE V2 (arXiv:2303.16727), table 11.
VIT_VARIANTS = {
    "S": StackSpec(384, 12, 6),
    "B": StackSpec(768, 12, 12),
    "L": StackSpec(1024, 24, 16),
    "H": StackSpec(1280, 32, 16),
    "g": StackSpec(1408, 40, 16, GIANT_MLP_RATIO),
}

# VideoMAE's released scripts: 4 decoder blocks for S and B, 12 for L and H (the paper says 4).
VIDEOMAE_DECODERS = {
    "S": StackSpec(192, 4, 3),
    "B": StackSpec(384, 4, 6),
    "L": StackSpec(512, 12, 8),
    "H": StackSpec(640, 12, 8),
}

# VideoMAE V2: 4 blocks for all, and 512 wide for H too.
VIDEOMAE_V2_DECODERS = {
    "S": StackSpec(192, 4, 3),
    "B": StackSpec(384, 4, 6),
    "L": StackSpec(512, 4, 8),
    "H": StackSpec(512, 4, 8),
    "g": StackSpec(512, 4, 8, GIANT_MLP_RATIO),
}
