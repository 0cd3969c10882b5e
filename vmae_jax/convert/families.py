"""To which family of checkpoints a file belongs, and under whose names ours are released."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vmae_jax.convert import clip, mae_st, mvit, umt, videomae
from vmae_jax.convert.engine import Arrays, ConversionError, Table, listed
from vmae_jax.ops.patches import Tubelet


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
    """The family of a foreign file, judged by the name of its patch embedding and those beside it.

    Raises:
      ConversionError: there is none, or it is not that of a video model or an image tower.
    """
    bare = Table("", (), prefixes=videomae.PREFIXES)
    names = {bare.strip(name): name for name in source}
    known = videomae.EMBEDDINGS.keys() | clip.EMBEDDINGS.keys()
    embedding = next((name for name in names if name in known), None)
    if embedding is None:
        raise ConversionError(
            "none of the names is the patch embedding of a known family (released VideoMAE, "
            "VideoMAE V2, MAE-ST, MaskFeat and MViTv2, Unmasked Teacher, transformers' VideoMAE, "
            "image towers of CLIP); the first are "
            f"{listed(list(source), 4)}"
        )
    if embedding in clip.EMBEDDINGS:
        table = clip.tower_table(embedding, {bare: source[name] for bare, name in names.items()})
        return Family(table, clip.LICENCE, *clip.patch_shape(source[names[embedding]]))
    shape = source[names[embedding]].shape
    if len(shape) != 5:
        raise ConversionError(
            f"{names[embedding]} has the shape {shape}; that of a video model is a convolution "
            "over frames, rows and columns, with five axes"
        )
    tubelet, channels = tuple(shape[2:]), shape[1]
    if mvit.is_mvit(names):
        table = mvit.mvit_table(mvit.pooling_of(source))
        return Family(table, mvit.LICENCE, mvit.TUBELET, channels)
    if mae_st.is_mae_st(names):
        table = mae_st.table_of_names(names, tubelet, channels)
        return Family(table, mae_st.LICENCE, tubelet, channels)
    if embedding in umt.EMBEDDINGS and umt.is_umt(names, tubelet):
        table = umt.EMBEDDINGS[embedding](tubelet, channels)
        return Family(table, umt.LICENCE, tubelet, channels)
    make, licence = videomae.EMBEDDINGS[embedding]
    return Family(make(tubelet, channels), licence, tubelet, channels)


def released_table(arrays: Mapping[str, np.ndarray], tubelet: Tubelet, channels: int) -> Table:
    """The released names for arrays by our paths.

    Args:
      arrays: our path -> array, of a whole network.
      tubelet: (frames, rows, columns) of a patch.
      channels: of the video.
    """
    if clip.is_tower(arrays):
        return clip.clip_table(tubelet, channels)
    if "encoder/blocks/00/attn/pool_q/kernel" in arrays:
        return mvit.mvit_table("first" if "encoder/norm/scale" in arrays else "mean")
    pretraining = "decoder/head/kernel" in arrays
    if "encoder/blocks/attn/k_bias" in arrays:
        blocks = len(arrays["decoder/blocks/norm1/scale"]) if pretraining else 0
        return mae_st.table_of_paths(arrays.keys(), blocks, tubelet, channels)
    if "align/proj/kernel" in arrays:
        return umt.pretrain_table(tubelet, channels)
    make = videomae.pretrain_table if pretraining else videomae.finetune_table
    return make(tubelet, channels)
