"""The recipe of weights that came without one of ours: what shapes and foreign configs tell.

Shapes tell widths, depths, patches and classes. They do not tell the number of heads, which the
published sizes do, nor frames and resolution, for which positions are computed by the model.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vmae_jax import config as config_lib
from vmae_jax.convert import mae_st, umt
from vmae_jax.convert.engine import ConversionError, blocks_of
from vmae_jax.convert.mvit import spec_of
from vmae_jax.convert.sources import Source
from vmae_jax.variants import (
    CLIP_VARIANTS,
    GIANT_MLP_RATIO,
    MAE_ST_DECODER,
    MAE_ST_REPOSITORY_DECODER,
    VIDEOMAE_DECODERS,
    VIDEOMAE_V2_DECODERS,
    VIT_VARIANTS,
)

_Shapes = Mapping[str, tuple[int, ...]]

_log = logging.getLogger(__name__)

_HEADS = {
    "encoder": {spec.width: spec.heads for spec in VIT_VARIANTS.values()},
    "decoder": {
        spec.width: spec.heads
        for specs in (VIDEOMAE_DECODERS, VIDEOMAE_V2_DECODERS)
        for spec in specs.values()
    },
}
_HEAD_DIM = 64  # of all published sizes but H (80) and g (88)


def config_of(source: Source) -> ConfigDict:
    """The recipe of weights: their own where they are ours, else what can be inferred.

    What cannot (data, schedule, masks) has the defaults of pretraining or fine-tuning. An encoder
    alone is a classifier whose number of classes is open: it has features, and no head.

    Raises:
      ConversionError: a size whose number of heads is not known.
      ConfigError: a recipe of ours that this version cannot read.
    """
    if "system" in source.config:
        return config_lib.from_mapping(source.config)
    if source.tower:
        raise ConversionError(
            f"{source.path} is an image tower, which is no system by itself: name it as "
            "config.teacher.weights of one that learns from it"
        )
    pretraining, theirs = source.pretraining, source.config
    shapes = {path: array.shape for path, array in source.arrays.items()}
    if blocks_of(shapes):
        return _multiscale(source, shapes)
    config = _defaults_for(source, shapes).unlock()
    config.model.encoder.update(_spec_fields(shapes, "encoder", theirs.get("num_attention_heads")))
    if "decoder" in config.model:
        heads = theirs.get("decoder_num_attention_heads")
        if config.system == "mae_st":
            heads = _mae_st_decoder(config, shapes, source)
        config.model.decoder.update(_spec_fields(shapes, "decoder", heads))
        config.masking.normalize_target = theirs.get("norm_pix_loss", True)
    elif not pretraining:
        _set_head(config, source, shapes)
    config.model.tubelet, config.model.channels = source.tubelet, source.channels
    config.model.class_token = "encoder/cls_token" in shapes
    config.model.key_bias = "encoder/blocks/attn/k_bias" in shapes
    config.model.positions = _positions(shapes, "encoder") or config.model.positions
    if config.model.positions == "joint" and source.family in umt.TABLES:
        config.model.positions = "frozen"  # stored, and given no gradient
    config.model.cosine_attention = "encoder/blocks/attn/scale" in shapes
    config.model.layer_scale = 0.1 if "encoder/blocks/gamma_1" in shapes else 0.0
    config.data.frames, size = _clip(shapes, config)
    config.data.frames = theirs.get("num_frames", config.data.frames)
    size = theirs.get("image_size", size)
    config.data.size = (size, size) if isinstance(size, int) else tuple(size)
    if config.system == "umt":
        _set_teacher(config, shapes)
    for field in ("mean", "std"):
        if values := source.processor.get(f"image_{field}"):
            config.data[field] = tuple(values)
        elif source.channels == 1:
            config.data[field] = (sum(config.data[field]) / 3,)
    return config.lock()


def _multiscale(source: Source, shapes: _Shapes) -> ConfigDict:
    """The recipe of a network whose blocks differ."""
    spec, grid = spec_of(shapes)
    system = "maskfeat" if source.pretraining else "classify"
    config = config_lib.defaults_of(system, "mvit").unlock()
    config.model.encoder = config_lib.mvit(spec)
    if not source.pretraining:
        _set_head(config, source, shapes)
    config.model.channels = shapes["encoder/patch_embed/kernel"][3]
    config.model.class_token = "encoder/cls_token" in shapes
    config.model.positions = _positions(shapes, "encoder") or "none"
    frames, *size = (n * step for n, step in zip(grid, config.model.tubelet, strict=True))
    config.data.frames, config.data.size = frames, tuple(size)
    return config.lock()


def _set_head(config: ConfigDict, source: Source, shapes: _Shapes) -> None:
    """Sets what a classifier's head tells, and where its norm lies."""
    normed = "encoder/norm/scale" in shapes
    if "head/bias" in shapes:
        config.model.num_classes = shapes["head/bias"][0]
        config.model.class_names = _label_names(source.config)
        config.model.pooling = "first" if normed else "mean"
    else:
        config.model.pooling = "normed" if normed else "mean"


def _defaults_for(source: Source, shapes: _Shapes) -> ConfigDict:
    """The defaults of the system that such arrays are of."""
    if source.family in umt.TABLES:
        aligned = "align/proj/kernel" in shapes
        return config_lib.umt_defaults() if aligned else config_lib.umt_finetune_defaults()
    # MAE-ST alone has a bias there, and one of the keys.
    if source.pretraining:
        mae_st = "encoder_to_decoder/bias" in shapes
        return config_lib.mae_st_defaults() if mae_st else config_lib.pretrain_defaults()
    mae_st = "encoder/blocks/attn/k_bias" in shapes
    return config_lib.mae_st_finetune_defaults() if mae_st else config_lib.finetune_defaults()


def _set_teacher(config: ConfigDict, shapes: _Shapes) -> None:
    """Sets what the heads of a network tell of the tower that it was aligned with.

    The width of its answers tells which of CLIP's released towers it was, all of whose patches on
    a frame are as many as the student's.
    """
    layers, _, output = shapes["align/proj/kernel"]
    config.align.layers, config.teacher.output = layers, output
    towers = {512: ("B/16", 16), 768: ("L/14", 14)}
    if output in towers:
        name, patch = towers[output]
        config.teacher.encoder.update(dataclasses.asdict(CLIP_VARIANTS[name]))
        config.teacher.tubelet = (config.model.tubelet[0], patch, patch)
    _, *patches = config_lib.clip_grid(config)
    steps = config.teacher.tubelet[1:]
    config.teacher.size = tuple(n * step for n, step in zip(patches, steps, strict=True))


def _mae_st_decoder(config: ConfigDict, shapes: _Shapes, source: Source) -> int | None:
    """Sets what the two released implementations do otherwise; returns the decoder's heads, if it
    is as wide as theirs."""
    repository = source.family == mae_st.REPOSITORY or mae_st.of_repository(shapes)
    config.model.init = "mae_st" if repository else "slowfast"
    has_class = "encoder/cls_token" in shapes
    own_or_handed_on = "own" if repository else "encoder"
    config.model.decoder_class_token = own_or_handed_on if has_class else "none"
    config.model.decoder_positions = _positions(shapes, "decoder") or "sincos"
    frames, rows, columns = source.tubelet
    if shapes["decoder/head/bias"][0] == frames * rows * columns * source.channels:
        config.masking.target_frames = "all"
    else:
        config.masking.target_frames = "linspace" if repository else "first"
    spec = MAE_ST_REPOSITORY_DECODER if repository else MAE_ST_DECODER
    width = shapes["decoder/norm/scale"][0]
    return spec.heads if width == spec.width else None


def _positions(shapes: _Shapes, stack: str) -> str | None:
    """The kind of a stack's learned positions; None where it has none."""
    if f"{stack}/pos_embed_spatial" in shapes:
        return "separable"
    return "joint" if f"{stack}/pos_embed" in shapes else None


def _clip(shapes: _Shapes, config: ConfigDict) -> tuple[int, tuple[int, int]]:
    """Frames and size of the clips that stored positions are for, as far as these tell them; else
    those of the config."""
    grid = None
    if "encoder/pos_embed_spatial" in shapes:
        side = math.isqrt(shapes["encoder/pos_embed_spatial"][0])  # square, as in released files
        grid = shapes["encoder/pos_embed_temporal"][0], side, side
    elif config.model.positions == "frozen":
        grid = umt.stored_grid(shapes["encoder/pos_embed"][0])
    if grid is None:
        return config.data.frames, config.data.size
    frames, *size = (n * step for n, step in zip(grid, config.model.tubelet, strict=True))
    return frames, tuple(size)


def _label_names(theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a config of transformers, in their order; () where it names none."""
    labels = theirs.get("id2label") or {}
    try:
        names = tuple(str(labels[str(number)]) for number in range(len(labels)))
    except (KeyError, TypeError) as error:
        raise ConversionError(f"id2label beside the weights names no class {error}") from error
    placeholders = tuple(f"LABEL_{number}" for number in range(len(names)))
    return () if names == placeholders else names


def _spec_fields(shapes, stack: str, heads: int | None) -> dict[str, float]:
    """Width, depth, heads and MLP ratio of a stack."""
    try:
        depth, width, hidden = shapes[f"{stack}/blocks/mlp/fc1/kernel"]
    except KeyError as error:
        raise ConversionError(f"the weights have no blocks of the {stack}") from error
    usual = _HEADS[stack].get(width) or (width // _HEAD_DIM if width % _HEAD_DIM == 0 else None)
    if f"{stack}/blocks/attn/scale" in shapes:  # cosine attention has one scale a head
        heads = shapes[f"{stack}/blocks/attn/scale"][1]
    if heads is None and usual is None:
        raise ConversionError(
            f"the number of heads of the {stack}, {width} wide, cannot be read off its weights; "
            "give a config that says it (--config=config.json)"
        )
    if heads is not None and usual is not None and heads != usual:
        _log.warning(
            "The %s is said to have %d heads; that of the published models of width %d has %d.",
            *(stack, heads, width, usual),
        )
    ratio = mlp_ratio(width, hidden)
    return {"width": width, "depth": depth, "heads": heads or usual, "mlp_ratio": ratio}


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio that `int(width * ratio)` makes the hidden width of."""
    for ratio in (4.0, GIANT_MLP_RATIO, hidden / width, (hidden + 0.5) / width):
        if int(width * ratio) == hidden:
            return ratio
    raise AssertionError(f"no ratio makes {hidden} of {width}")  # (h + 0.5) / w always does
