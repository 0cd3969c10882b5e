"""Names of Unmasked Teacher's checkpoints: its pretraining and what is fine-tuned from that.

Both have VideoMAE's names for the encoder. The heads that are aligned with the teacher tell a
pretraining file; one that is fine-tuned, or an encoder alone, is known by its patches of a single
frame, which no other released model of videos with these names has.
"""

import dataclasses
import math
from collections.abc import Collection

from vmae_jax.convert import videomae
from vmae_jax.convert.engine import POSITIONS, Rule, Table, linear_rules, norm_rules
from vmae_jax.ops.patches import Grid, Tubelet

LICENCE = "Unmasked Teacher's code: MIT; a licence of its weights is not stated"
TABLES = PRETRAINING, FINETUNED = "Unmasked Teacher", "Unmasked Teacher fine-tuned"  # their names


def is_umt(names: Collection[str], tubelet: Tubelet) -> bool:
    """Whether foreign names of VideoMAE's encoder, wrappers' prefixes stripped, are UMT's."""
    if any(name.startswith("clip_decoder.") for name in names):
        return True
    return tubelet[0] == 1 and "mask_token" not in names


def pretrain_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A released pretraining checkpoint <-> `models.umt.Student`.

    Head k is that of the k-th of the aligned layers, counted from the shallowest.

    Args:
      tubelet: (frames, rows, columns) of a patch; undoes the flattening of the patch embedding.
      channels: of the input video.
    """
    return Table(
        name=PRETRAINING,
        rules=(
            *videomae.encoder_rules("encoder.", tubelet, channels),
            Rule("encoder.pos_embed", "encoder/pos_embed", POSITIONS),
            *linear_rules("clip_decoder.{i}.head", "align/proj"),
            *norm_rules("clip_decoder.{i}.norm", "align/norm"),
        ),
        prefixes=videomae.PREFIXES,
    )


def finetune_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A released fine-tuned checkpoint <-> `Classifier`: VideoMAE's names."""
    return dataclasses.replace(videomae.finetune_table(tubelet, channels), name=FINETUNED)


# Name of the patch embedding -> maker of the table.
EMBEDDINGS = {
    "encoder.patch_embed.proj.weight": pretrain_table,
    "patch_embed.proj.weight": finetune_table,
}


def stored_grid(rows: int) -> Grid | None:
    """The grid of a stored table of positions, [t*h*w] rows; None where the rows do not tell.

    The released files have one where it is not 8 frames of 224 pixels: of more frames in the same
    squares of 14 x 14, or of 8 or 16 frames of more pixels.
    """
    squares = ((rows // 196, 14), *((slots, math.isqrt(rows // slots)) for slots in (8, 16)))
    return next(((t, side, side) for t, side in squares if t * side * side == rows), None)
