"""What makes a recipe valid; every problem is found before anything is opened or compiled."""

import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vmae_jax.config.defaults import defaults_of
from vmae_jax.config.derived import (
    aligned_layers,
    clip_grid,
    mask_cells,
    mixed_clips,
    mvit_spec,
    rows_of_a_batch,
    teacher_frames,
    teacher_grid,
    token_counts,
)
from vmae_jax.config.errors import ConfigError
from vmae_jax.ops.attention import IMPLEMENTATIONS
from vmae_jax.ops.losses import ALIGNMENTS
from vmae_jax.ops.patches import TARGET_FRAMES
from vmae_jax.variants import (
    DECODER_CLASS_TOKENS,
    INITS,
    MASK_TOKENS,
    MVIT_POSITIONS,
    TRAINED_POOLINGS,
)

PROBES = ("knn", "linear", "attentive")


def validate(config: ConfigDict) -> None:
    """Checks a whole recipe before anything is opened or compiled.

    Raises:
      ConfigError: every problem found, each with field, value and good values.
    """
    defaults_of(config.system, config.model.architecture)
    stacks = {
        f"{group}.{name}": part
        for group in ("model", "teacher")
        if group in config
        for name, part in config[group].items()
        if isinstance(part, ConfigDict)
    }
    checks = _CHECKS + _CHECKS_OF[config.system] + _CHECKS_OF_NETWORK[config.model.architecture]
    checks += tuple(check for path in stacks for check in _stack_checks(path))
    problems = [
        f"config.{field}={value!r}: {good}"
        for field, ok, good in checks
        if not ok(value := _get(config, field))
    ]
    problems += [
        f"config.{path}.width={part.width} is not a multiple of its {part.heads} heads"
        for path, part in stacks.items()
        if part.heads > 0 and part.width % part.heads
    ]
    rows, what = rows_of_a_batch(config)
    if config.optim.accumulate > 0 and rows % config.optim.accumulate:
        problems.append(
            f"config.optim.accumulate={config.optim.accumulate} does not divide the {rows} {what} "
            "of a global batch (train.batch_videos, for clips times data.repeats)"
        )
    for field in ("mean", "std"):
        if len(config.data[field]) != config.model.channels:
            problems.append(
                f"config.data.{field}={config.data[field]} needs one number for each of the "
                f"{config.model.channels} channels (config.model.channels)"
            )
    if len(config.data.size) == 2 and len(config.model.tubelet) == 3:  # else reported above
        for derive in _DERIVED_OF[config.system] + _DERIVED_OF_NETWORK[config.model.architecture]:
            try:
                derive(config)
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("the config cannot be run:\n  " + "\n  ".join(problems))


def _get(config: ConfigDict, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = value[name]
    return value


_Check = tuple[str, Callable[[Any], bool], str]


def _one_of(field: str, *choices: Any) -> _Check:
    return field, lambda v: v in choices, "choose one of " + ", ".join(map(repr, choices))


def _at_least(field: str, least: float) -> _Check:
    return field, lambda v: v >= least, f"must be at least {least}"


def _positive(field: str) -> _Check:
    return field, lambda v: v > 0, "must be positive"


def _probability(field: str) -> _Check:
    return field, lambda v: 0 <= v <= 1, "must lie in [0, 1]"


def _fraction(field: str) -> _Check:
    return field, lambda v: 0 <= v < 1, "must lie in [0, 1)"


def _sha256(field: str) -> _Check:
    return field, lambda v: not v or re.fullmatch("[0-9a-f]{64}", v), "64 hexadecimal digits, or ''"


def _tubelet(field: str) -> _Check:
    return field, lambda v: len(v) == 3 and min(v) > 0, "must be (frames, rows, columns)"


def _stack_checks(part: str) -> tuple[_Check, ...]:
    """Of the fields that `defaults.stack` makes."""
    return (
        _one_of(f"{part}.attention", "auto", *IMPLEMENTATIONS),
        _one_of(f"{part}.remat", "none", "named", "full"),
        _fraction(f"{part}.drop_path"),
        *(_at_least(f"{part}.{field}", 1) for field in ("width", "depth", "heads")),
    )


_CHECKS: tuple[_Check, ...] = (
    _one_of("model.gelu", "exact", "tanh"),
    _one_of("model.layers", "scan", "unroll"),
    _one_of("model.dtype", "bfloat16", "float32"),
    _one_of("model.channels", 1, 3),
    _one_of("data.style", "auto", "csv", "path_label", "path_start_total"),
    _one_of("data.sampling", "dense", "window", "segments", "seconds", "sparse"),
    ("data.select", lambda v: v == "random", "'centre' and 'views' are for tests, not training"),
    ("data.views", lambda v: len(v) == 2 and min(v) > 0, "must be (clips, crops) of a video"),
    _one_of("data.crop", "multi_scale", "resized", "views", "centre", "none"),
    _positive("data.fps"),
    _at_least("data.short_side", 0),
    _one_of("data.repeat_windows", True, False),
    _one_of("data.filter", "antialias", "bilinear"),
    (
        "data.randaugment",
        lambda v: len(v) == 0 or (len(v) == 3 and 0 <= v[0] <= 10 and v[1] >= 1 and v[2] >= 0),
        "must be (magnitude in [0, 10], operations, deviation) or ()",
    ),
    (
        "data.crop_area",
        lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
        "must be (least, most) in (0, 1]",
    ),
    (
        "data.crop_aspect",
        lambda v: len(v) == 2 and 0 < v[0] <= v[1],
        "must be (least, most), positive",
    ),
    _one_of("data.resize", "host", "device"),
    _one_of("data.on_error", "skip", "raise"),
    _fraction("data.max_error_rate"),
    *(_positive(f"data.{field}") for field in ("clip_timeout_s", "stall_timeout_s")),
    *(_at_least(f"data.{field}", 1) for field in ("max_bytes", "max_pixels", "max_frames")),
    *(
        _at_least(f"data.{field}", 0)
        for field in ("min_errors", "worker_videos", "max_worker_restarts")
    ),
    _at_least("data.worker_buffer", 1),
    ("data.scales", lambda v: len(v) > 0 and 0 < min(v) <= max(v) <= 1, "numbers in (0, 1]"),
    ("seed", lambda v: 0 <= v < 2**31, "must lie in [0, 2**31)"),
    *(_at_least(f"data.{field}", 1) for field in ("frames", "stride", "repeats")),
    _at_least("data.workers", -1),
    *(
        (f"data.{field}", lambda v: len(v) == 2 and min(v) > 0, "must be (height, width) in pixels")
        for field in ("size", "canvas")
    ),
    _tubelet("model.tubelet"),
    ("optim.betas", lambda v: len(v) == 2 and 0 <= min(v) <= max(v) < 1, "two numbers in [0, 1)"),
    _positive("optim.lr_per_videos"),
    _one_of("optim.schedule", "peak_twice", "peak_once", "cosine_throughout"),
    *(_one_of(f"optim.decay_{what}", True, False) for what in ("tables", "scales")),
    *(
        _at_least(f"optim.{field}", 0)
        for field in (
            *("base_lr", "min_lr", "warmup_lr", "warmup_epochs"),
            *("weight_decay", "eps", "clip_norm"),
        )
    ),
    _at_least("optim.accumulate", 1),
    _at_least("optim.max_skipped_in_a_row", 1),
    _fraction("optim.ema_decay"),
    ("optim.layer_decay", lambda v: 0 < v <= 1, "must lie in (0, 1]"),
    _at_least("eval.every", 0),
    *(
        _at_least(f"train.{field}", 1)
        for field in ("epochs", "batch_videos", "log_every", "checkpoint_every", "keep_last")
    ),
    *(
        _at_least(f"train.{field}", 0)
        for field in ("steps", "picture_every", "keep_every", "stop_after", "peak_tflops")
    ),
    _at_least("mesh.fsdp", 1),
)

_PRETRAINING: tuple[_Check, ...] = (
    (
        "eval.probes",
        lambda v: set(v) <= set(PROBES) and len(v) > 0,
        f"choose among {', '.join(map(repr, PROBES))}",
    ),
)

_MAE_ST: tuple[_Check, ...] = (
    _one_of("model.decoder_positions", "sincos", "separable", "joint"),
    _one_of("model.decoder_class_token", *DECODER_CLASS_TOKENS),
    _one_of("masking.target_frames", *TARGET_FRAMES),
    _one_of("masking.mask_tokens", *MASK_TOKENS),
)

_MASKFEAT: tuple[_Check, ...] = (
    *_PRETRAINING,
    _one_of("masking.target", "hog", "pixels"),
    *(_at_least(f"masking.{field}", 1) for field in ("hog_bins", "hog_cell")),
)

_CLASSIFYING: tuple[_Check, ...] = (
    _at_least("model.num_classes", 0),
    _one_of("model.pooling", *TRAINED_POOLINGS),
    _fraction("model.head_dropout"),
    _positive("model.head_scale"),
    *(_probability(f"augment.{field}") for field in ("erase", "mix_prob", "switch_prob")),
    *(_at_least(f"augment.{field}", 0) for field in ("mixup", "cutmix")),
    _fraction("augment.smoothing"),
)

_DISTILLING: tuple[_Check, ...] = (
    _sha256("teacher.sha256"),
    _tubelet("teacher.tubelet"),
    _one_of("teacher.pooling", *TRAINED_POOLINGS),
    _positive("distill.temperature"),
    _one_of("distill.times_square", True, False),
    _one_of("distill.teacher_view", "same", "clean"),
    _probability("distill.label_weight"),
)

_ALIGNING: tuple[_Check, ...] = (
    _sha256("teacher.sha256"),
    _tubelet("teacher.tubelet"),
    ("teacher.size", lambda v: len(v) == 2 and min(v) > 0, "must be (height, width) in pixels"),
    *(_at_least(f"teacher.{field}", 1) for field in ("output", "interval")),
    *(_at_least(f"teacher.{field}", 0) for field in ("chunk", "attention_layer")),
    *(_at_least(f"align.{field}", 1) for field in ("layers", "interval")),
    _one_of("align.normalize", "l2", "none"),
    _one_of("align.loss", *ALIGNMENTS),
    _positive("align.weight"),
)

_VIT: tuple[_Check, ...] = (
    _one_of("model.positions", "sincos", "separable", "joint", "frozen"),
    (
        "model.sincos_grid",
        lambda v: len(v) in (0, 3) and min(v, default=1) > 0,
        "must be (frames, rows, columns) of tokens or ()",
    ),
    _one_of("model.class_token", True, False),
    _one_of("model.key_bias", True, False),
    _one_of("model.init", *INITS),
)

_MVIT: tuple[_Check, ...] = (
    _one_of("model.positions", *MVIT_POSITIONS),
    _one_of("model.class_token", True, False),
)

_CHECKS_OF_NETWORK: dict[str, tuple[_Check, ...]] = {"vit": _VIT, "mvit": _MVIT}

_CHECKS_OF = {
    "videomae": _PRETRAINING,
    "mae_st": _PRETRAINING + _MAE_ST,
    "classify": _CLASSIFYING,
    "distill": _CLASSIFYING + _DISTILLING,
    "maskfeat": _MASKFEAT,
    "umt": _PRETRAINING + _ALIGNING,
}


def _check_decoder(config: ConfigDict) -> None:
    """Whether a decoder gets what it wants.

    Raises:
      ConfigError: it does not.
    """
    if config.model.decoder_class_token == "encoder" and not config.model.class_token:
        raise ConfigError(
            "config.model.decoder_class_token='encoder': the encoder has no class token; set "
            "config.model.class_token=True, or this to 'own' or 'none'"
        )
    if config.masking.mask_tokens == "encoder" and config.masking.decoder[0] != "none":
        raise ConfigError(
            "config.masking.mask_tokens='encoder': the encoder then takes every token once; set "
            "config.masking.decoder=('none', 0.0)"
        )


def _check_alignment(config: ConfigDict) -> None:
    """Whether student and teacher can be compared as asked for.

    Raises:
      ConfigError: they cannot.
    """
    for group in ("model", "teacher"):
        aligned_layers(config, group)
    if config.teacher.attention_layer > config.teacher.encoder.depth:
        raise ConfigError(
            f"config.teacher.attention_layer={config.teacher.attention_layer}: the teacher has "
            f"layers 1 to {config.teacher.encoder.depth}; 0 is the last"
        )
    teacher_grid(config)
    teacher_frames(config)
    if config.align.loss == "l2" and config.align.normalize != "l2":
        raise ConfigError(
            f"config.align.loss='l2' compares unit vectors, config.align.normalize is "
            f"{config.align.normalize!r}; set that to 'l2', or the loss to 'mse' or 'smooth_l1'"
        )


def _check_positions(config: ConfigDict) -> None:
    """Whether positions can be had as asked for.

    Raises:
      ConfigError: they cannot.
    """
    model = config.model
    if model.positions == "frozen" and not config.init_from:
        raise ConfigError(
            "config.model.positions='frozen' keeps a table that was loaded, so config.init_from "
            "must name weights; else choose 'sincos', 'separable', 'joint'"
        )
    if model.sincos_grid and config.system != "classify":
        raise ConfigError(
            f"config.model.sincos_grid={model.sincos_grid}: only a classifier's sinusoid is "
            f"interpolated, the system is {config.system!r}; set it to ()"
        )


# Functions that raise where sizes do not go together.
_DERIVED_OF_NETWORK = {"vit": (_check_positions,), "mvit": (mvit_spec,)}
_DERIVED_OF = {
    "videomae": (token_counts,),
    "mae_st": (token_counts, _check_decoder),
    "classify": (clip_grid, mixed_clips),
    "distill": (
        clip_grid,
        mixed_clips,
        lambda config: clip_grid(config, tuple(config.teacher.tubelet)),
    ),
    "maskfeat": (mask_cells,),
    "umt": (token_counts, _check_alignment),
}
