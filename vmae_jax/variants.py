"""Published sizes of the vision transformers: one table for every system and config."""

import dataclasses

# Of a classifier: mean of all tokens and then a norm, or a norm and then the first token. Of an
# encoder alone, without a head, also a norm and then the mean of all tokens.
TRAINED_POOLINGS = ("mean", "first")
POOLINGS = (*TRAINED_POOLINGS, "normed")

# Of a stack's tokens: none; a fixed sinusoid; learned tables of space and of time; one learned
# table; one that is kept as it was loaded.
POSITIONS = ("none", "sincos", "separable", "joint", "frozen")

# Code bases whose initialisation is known, see models/init.py.
INITS = ("videomae", "mae_st", "slowfast")

# Of a decoder: none, one of its own, or the one that comes out of the encoder.
DECODER_CLASS_TOKENS = ("none", "own", "encoder")

# The stack whose input has mask tokens.
MASK_TOKENS = ("decoder", "encoder")


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


GROW_IN = ("mlp", "attention")


@dataclasses.dataclass(frozen=True)
class MViTSpec:
    """Size of a multiscale transformer: from stage to stage, width and heads double.

    Attributes:
      width: token width D of the stem and the first stage.
      depths: number of blocks of each stage.
      heads: attention heads of the first stage; divides the width.
      mlp_ratio: hidden width of an MLP as a multiple of the width that enters it.
      strides: of the queries in the first block of each stage, along (time, height, width): what
        the grid of tokens is divided by. The first stage's are 1.
      kv_stride: of the keys and values in the first block; where queries have strides, it is
        divided by them, so that the number of keys stays the same.
      stem_kernel: of the patch embedding, a convolution whose stride is the tubelet.
      pool_kernel: of the convolutions that pool queries, keys and values.
      grow_in: where the width doubles: "mlp", of the block before a stage (MaskFeat), or
        "attention", of its first block (the supervised MViTv2).
    """

    width: int
    depths: tuple[int, ...]
    heads: int
    mlp_ratio: float = 4.0
    strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    kv_stride: tuple[int, int, int] = (1, 8, 8)
    stem_kernel: tuple[int, int, int] = (3, 7, 7)
    pool_kernel: tuple[int, int, int] = (3, 3, 3)
    grow_in: str = "mlp"

    def __post_init__(self):
        triples = (*self.strides, self.kv_stride, self.stem_kernel, self.pool_kernel)
        good = {
            "depths": bool(self.depths) and min(self.depths) > 0,
            "heads": self.heads > 0 and self.width % self.heads == 0,
            "strides": len(self.strides) == len(self.depths) and set(*self.strides[:1]) == {1},
            "kv_stride": all(len(v) == 3 and min(v) > 0 for v in triples),
            "stem_kernel": all(side % 2 for side in self.stem_kernel),
            "pool_kernel": all(side % 2 for side in self.pool_kernel),
            "grow_in": self.grow_in in GROW_IN,
        }
        for name, holds in good.items():
            if not holds:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not do: give for each stage its blocks "
                    "(depths) and, 1 in the first, strides; (time, height, width) of whole "
                    "positive numbers, of kernels odd ones; heads that divide the width; grow_in "
                    f"{' or '.join(GROW_IN)}"
                )

    @property
    def depth(self) -> int:
        """Number of blocks in all."""
        return sum(self.depths)


# What is added to the tokens of the stem, beside the relative positions of every block.
MVIT_POSITIONS = ("none", "separable", "joint")

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

# Image towers of CLIP (arXiv:2103.00020), by size and patch; their projection is 512 wide for B/16,
# 768 for L/14.
CLIP_VARIANTS = {
    "B/16": StackSpec(768, 12, 12),
    "L/14": StackSpec(1024, 24, 16),
}

# VideoMAE's released scripts: 4 decoder blocks for S and B, 12 for L and H (the paper says 4).
VIDEOMAE_DECODERS = {
    "S": StackSpec(192, 4, 3),
    "B": StackSpec(384, 4, 6),
    "L": StackSpec(512, 12, 8),
    "H": StackSpec(640, 12, 8),
}

# MAE-ST (arXiv:2205.09113): one decoder for all sizes. Its heads are 8 in PySlowFast, which trained
# the published weights, and 16 in the paper's repository.
MAE_ST_DECODER = StackSpec(512, 4, 8)
MAE_ST_REPOSITORY_DECODER = StackSpec(512, 4, 16)

# VideoMAE V2: 4 blocks for all, and 512 wide for H too.
VIDEOMAE_V2_DECODERS = {
    "S": StackSpec(192, 4, 3),
    "B": StackSpec(384, 4, 6),
    "L": StackSpec(512, 4, 8),
    "H": StackSpec(512, 4, 8),
    "g": StackSpec(512, 4, 8, GIANT_MLP_RATIO),
}

# MViTv2 (arXiv:2112.01526) for video as MaskFeat (arXiv:2112.09133) trains it; released configs.
MVIT_VARIANTS = {
    "S": MViTSpec(96, (1, 2, 11, 2), 1),
    "L": MViTSpec(144, (2, 6, 36, 4), 2),
}


def without_last_stride(spec: MViTSpec) -> MViTSpec:
    """The network that MaskFeat pretrains: its last stage keeps the grid of the one before."""
    return dataclasses.replace(spec, strides=(*spec.strides[:-1], (1, 1, 1)))
