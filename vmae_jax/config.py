"""The recipe: its fields and defaults, what makes one valid, and the numbers that follow from it.

A config file (`configs/*.py`) starts from `pretrain_defaults()`, changes what its paper changes
and ends with `configured(config, mode)`. Everything is checked here, before anything is compiled.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vmae_jax.errors import UserError
from vmae_jax.ops import masking
from vmae_jax.ops.attention import IMPLEMENTATIONS
from vmae_jax.ops.patches import Grid, grid_of
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS, StackSpec

_log = logging.getLogger(__name__)


class ConfigError(UserError, ValueError):
    """A recipe that cannot be run; the message names the field, the value and the good values."""


def stack(spec: StackSpec) -> ConfigDict:
    """The config fields of a transformer stack of the given size."""
    return ConfigDict(
        {
            **dataclasses.asdict(spec),
            # auto: cuDNN's flash kernel on GPUs, ours (packed) on TPUs, XLA elsewhere.
            "attention": "auto",
            # none | named (keep matrix products, recompute the rest) | full (keep block inputs).
            "remat": "named",
            "drop_path": 0.0,
        }
    )


def pretrain_defaults() -> ConfigDict:
    """Returns a locked config with VideoMAE's released pretraining values (ViT-B, 16 x 224 x 224).

    Source: VideoMAE (arXiv:2203.12602) and its released scripts; where the two differ, the scripts.
    """
    config = ConfigDict()
    config.system = "videomae"
    config.seed = 0
    # Weights only, at step 0: a workdir or checkpoint folder of ours, or a .safetensors file in
    # the released names. A checkpoint in the workdir itself always comes first.
    config.init_from = ""

    config.model = ConfigDict()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.decoder = stack(VIDEOMAE_DECODERS["B"])
    config.model.tubelet = (2, 16, 16)  # frames, rows, columns of one patch
    config.model.channels = 3  # 3: RGB; 1: grey
    config.model.layer_scale = 0.0  # 0: no layer scale, as in every published model
    config.model.cosine_attention = False
    config.model.gelu = "exact"  # exact | tanh (faster on TPU; not the released function)
    config.model.layers = "scan"  # scan | unroll
    config.model.dtype = "bfloat16"  # of the matrix products; parameters stay float32

    config.masking = ConfigDict()
    config.masking.encoder = ("tube", 0.9)  # tube | random | frame, ratio hidden
    # none (decode all hidden tokens) | running_cell | random | frame | tube, ratio not decoded.
    config.masking.decoder = ("none", 0.0)
    config.masking.normalize_target = True  # per patch and channel, as released

    config.data = ConfigDict()
    # A list of videos, a folder of tools/prepare, tfds:NAME, or a mixture (TOML); docs/data.md.
    config.data.manifest = ""
    config.data.root = ""  # folder or bucket of its paths; "": its own
    config.data.style = "auto"  # auto | csv | path_label | path_start_total
    config.data.allow_outside = False  # accept paths that leave the root
    # Names of the pictures in folders of frames: ((path regex, name), ...); see docs/data.md.
    config.data.frame_templates = (
        ("(^|/)(AVA|ava)v?([^A-Za-z]|$)", "{folder}_{number:06d}.jpg"),
        ("", "img_{number:05d}.jpg"),
    )
    config.data.published_videos = 0  # size of the published set; a different count is remarked on
    config.data.frames = 16
    config.data.stride = 4
    config.data.stride_overrides = ()  # ((path regex, stride), ...)
    config.data.sampling = "dense"  # dense (pretraining) | window (fine-tuning) | segments
    # random (training) | centre (validation) | views (test): which frames the rule picks.
    config.data.select = "random"
    config.data.views = (5, 3)  # clips, crops of each video with select="views"
    config.data.size = (224, 224)  # height, width
    config.data.crop = "multi_scale"  # multi_scale | resized | views | centre | none; docs/data.md
    config.data.scales = (1.0, 0.875, 0.75, 0.66)
    config.data.crop_area = (0.08, 1.0)  # of "resized": least and most, as shares of the frame
    config.data.crop_aspect = (3 / 4, 4 / 3)  # of "resized": least and most width / height
    # (magnitude, operations, deviation of the magnitude), e.g. (7, 4, 0.5) as released; (): none.
    config.data.randaugment = ()
    # Kernel that resizes. antialias: released pretraining; bilinear: released fine-tuning, test.
    config.data.filter = "antialias"
    # Where crops are cut out and resized. host: by Pillow, as released. device: the host sends the
    # frames of a video once, for all its crops, and two matrix products make each of them, within
    # one level of 255 of Pillow. Saves host time, the more the more repeats.
    config.data.resize = "host"
    # Height and width of the frames sent to the device; what does not fit is shrunk first. Choose
    # the size of your videos, e.g. (320, 568) for a short side of 320.
    config.data.canvas = (256, 456)
    config.data.repeats = 1  # crops taken of each decoded video
    # Off: the released pretraining transform has no flip, though the paper lists one for K400.
    config.data.flip = False
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.data.on_error = "skip"  # skip (count, log, substitute) | raise
    config.data.max_error_rate = 0.01
    config.data.min_errors = 10  # the rate counts once so many were met
    config.data.clip_timeout_s = 30.0
    config.data.stall_timeout_s = 600.0  # the run stops if no batch comes for so long
    config.data.workers = -1  # processes that decode; -1: one per core less one, at most 64
    # Times that workers are started anew when one dies, at the same batch; 0: the run stops.
    config.data.max_worker_restarts = 0
    config.data.worker_buffer = 1  # messages that each worker prepares ahead
    config.data.worker_videos = 0  # videos in a message; 0: as many as fit in 64 MiB
    config.data.max_bytes = 512 * 2**20  # of one file
    config.data.max_pixels = 4096 * 4096  # of one frame
    config.data.max_frames = 500_000  # of one video
    config.data.shuffle = True

    config.optim = ConfigDict()
    config.optim.base_lr = 1.5e-4  # per `lr_per_videos` videos of the global batch
    config.optim.lr_per_videos = 256.0
    config.optim.min_lr = 1e-5  # scaled like base_lr
    config.optim.warmup_epochs = 40.0
    config.optim.weight_decay = 0.05
    config.optim.betas = (0.9, 0.95)
    config.optim.eps = 1e-8
    config.optim.clip_norm = 0.0  # 0: no clipping
    config.optim.accumulate = 1  # micro-batches per step; the global batch stays what it is
    config.optim.ema_decay = 0.0  # 0: no average is kept
    # Non-finite updates before the run stops; looked at when metrics are logged.
    config.optim.max_skipped_in_a_row = 10

    config.train = ConfigDict()
    config.train.epochs = 801
    config.train.steps = 0  # 0: epochs decide; else the whole schedule is laid over so many steps
    config.train.batch_videos = 1024  # over all devices; clips = videos x data.repeats
    config.train.log_every = 50
    config.train.picture_every = 0  # steps; 0: never
    config.train.checkpoint_every = 1000
    config.train.keep_last = 3
    config.train.keep_every = 0  # also keep every so many steps for good; 0: none
    config.train.stop_after = 0  # end this process at that step, the schedule unchanged; 0: no
    config.train.peak_tflops = 0.0  # per chip, for MFU; 0: the datasheet value, if it is known
    config.train.wandb_project = ""  # "": Weights & Biases off

    config.mesh = ConfigDict()
    # Devices that share one copy of parameters and moments; at most: the degree in force is the
    # greatest common divisor with the number of devices, and is logged at the start.
    config.mesh.fsdp = 1
    return config.lock()


def configured(config: ConfigDict, mode: str | None) -> ConfigDict:
    """Ends a config file: applies the mode after the colon in `--config=file.py:mode`.

    Args:
      config: a complete recipe.
      mode: "" or None for the recipe as published; "smoke" for its miniature.

    Raises:
      ConfigError: unknown mode.
    """
    if mode == "smoke":
        config = smoke(config)
    elif mode:
        raise ConfigError(f"unknown config mode {mode!r}; write config.py or config.py:smoke")
    return config.lock()


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks width, depth, batch and steps, so that every mechanism of a recipe runs on a CPU.

    Head counts, MLP ratios, grids, masks, sampling and the peak learning rate stay the recipe's:
    `lr_per_videos` shrinks with the batch, or the scaled-down rate would teach nothing.
    """
    config = config.copy_and_resolve_references()
    for name in ("encoder", "decoder"):
        part = config.model[name]
        part.width = 8 * part.heads
        part.depth = min(part.depth, 2)
    small = min(config.train.batch_videos, 2)
    config.optim.lr_per_videos *= small / config.train.batch_videos
    config.optim.accumulate = math.gcd(config.optim.accumulate, small)
    config.train.batch_videos = small
    config.train.steps = 8
    config.train.log_every = 2
    config.train.checkpoint_every = 4
    return config


def to_json(config: ConfigDict) -> str:
    """The resolved config as stable JSON, for `config.json` and checkpoints."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_mapping(values: Mapping[str, Any]) -> ConfigDict:
    """Rebuilds a config from `config.json` or a checkpoint, where tuples became lists.

    Fields that came after it was saved get their default, which the log names: a new field's
    default is what was done before there was a choice.

    Raises:
      ConfigError: fields that this version does not know.
    """
    config = pretrain_defaults()
    problems: list[str] = []
    _fill(config, values, "config", problems)
    if problems:
        raise ConfigError(
            "the saved config does not fit this version of vmae_jax: " + "; ".join(problems)
        )
    return config


def _fill(config: ConfigDict, values: Mapping[str, Any], path: str, problems: list[str]) -> None:
    problems += [f"{path}.{name} is unknown" for name in sorted(values.keys() - config.keys())]
    for name in sorted(config.keys() - values.keys()):
        _log.info("%s.%s is newer than the saved config; it is %r.", path, name, config[name])
    for name in sorted(config.keys() & values.keys()):
        if isinstance(config[name], ConfigDict):
            _fill(config[name], values[name], f"{path}.{name}", problems)
        else:
            config[name] = _tuples(values[name])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Token counts that follow from a pretraining recipe.

    Attributes:
      grid: tokens along (time, height, width).
      visible: tokens that the encoder sees.
      targets: tokens that the decoder predicts.
      patch_values: P, numbers in one patch.
    """

    grid: Grid
    visible: int
    targets: int
    patch_values: int


def token_counts(config: ConfigDict) -> TokenCounts:
    """Token counts of a recipe.

    Raises:
      ConfigError: sizes that do not divide, or ratios that leave nothing.
    """
    height, width = config.data.size
    try:
        grid = grid_of(
            frames=config.data.frames, height=height, width=width, tubelet=config.model.tubelet
        )
        counts = masking.mask_counts(
            grid, encoder=config.masking.encoder, decoder=config.masking.decoder
        )
    except ValueError as error:
        raise ConfigError(
            f"config.model.tubelet, config.data and config.masking: {error}"
        ) from error
    values = math.prod(config.model.tubelet) * config.model.channels
    return TokenCounts(grid, counts.visible, counts.targets, values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Numbers of a run that follow from the recipe and the size of its data.

    Attributes:
      steps_per_epoch: full global batches in one pass over the videos; the rest is dropped.
      total_steps, warmup_steps: of the whole schedule.
      peak_lr, floor_lr: learning rates after scaling to the global batch.
      clips_per_step: crops in a global batch.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    peak_lr: float
    floor_lr: float
    clips_per_step: int


def plan(config: ConfigDict, num_videos: int) -> Plan:
    """Derives schedule and batch numbers, by the released rules.

    The rate scales with videos, not with the crops taken of each (reference: V2 4.2). Where
    `train.steps` is set, the warm-up keeps its share of the schedule.

    Raises:
      ConfigError: fewer videos than one global batch.
    """
    batch = config.train.batch_videos
    per_epoch = num_videos // batch
    if not per_epoch:
        raise ConfigError(
            f"config.train.batch_videos={batch} is more than the {num_videos} videos of the "
            f"manifest, so an epoch has no full batch; set it to {num_videos} or less"
        )
    epochs, warmup_epochs = config.train.epochs, config.optim.warmup_epochs
    if config.train.steps:
        total = config.train.steps
        warmup = math.ceil(total * min(warmup_epochs / epochs, 1.0))
    else:
        total = epochs * per_epoch
        warmup = round(warmup_epochs * per_epoch)
    scale = batch / config.optim.lr_per_videos
    return Plan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=min(warmup, total),
        peak_lr=config.optim.base_lr * scale,
        floor_lr=config.optim.min_lr * scale,
        clips_per_step=batch * config.data.repeats,
    )


def check_devices(config: ConfigDict, num_devices: int) -> None:
    """Checks that every (micro-)batch splits evenly over the devices.

    Raises:
      ConfigError: it does not; names a batch that does.
    """
    parts, (rows, what) = config.optim.accumulate, _rows(config)
    if rows % (num_devices * parts):
        per_video = rows // config.train.batch_videos
        step = math.lcm(num_devices * parts, per_video) // per_video
        good = math.ceil(config.train.batch_videos / step) * step
        raise ConfigError(
            f"config.train.batch_videos={config.train.batch_videos} gives {rows} {what} a step, "
            f"which {num_devices} devices x {parts} micro-batches cannot share evenly; set it to a "
            f"multiple of {step}, e.g. {good}"
        )


def _rows(config: ConfigDict) -> tuple[int, str]:
    """What a global batch can be split into, number and name: clips, but videos where the clips of
    a video are cut on the device that has its frames."""
    if config.data.resize == "device":
        return config.train.batch_videos, "videos"
    return config.train.batch_videos * config.data.repeats, "clips"


def validate(config: ConfigDict) -> None:
    """Checks a whole recipe before anything is opened or compiled.

    Raises:
      ConfigError: every problem found, each with field, value and good values.
    """
    problems = [
        f"config.{field}={value!r}: {good}"
        for field, ok, good in _CHECKS
        if not ok(value := _get(config, field))
    ]
    for name in ("encoder", "decoder"):
        part = config.model[name]
        if part.heads and part.width % part.heads:
            problems.append(
                f"config.model.{name}.width={part.width} is not a multiple of its "
                f"{part.heads} heads"
            )
    rows, what = _rows(config)
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
        try:
            token_counts(config)
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


def _fraction(field: str) -> _Check:
    return field, lambda v: 0 <= v < 1, "must lie in [0, 1)"


_CHECKS: tuple[_Check, ...] = (
    _one_of("model.gelu", "exact", "tanh"),
    _one_of("model.layers", "scan", "unroll"),
    _one_of("model.dtype", "bfloat16", "float32"),
    *(
        check
        for part in ("model.encoder", "model.decoder")
        for check in (
            _one_of(f"{part}.attention", "auto", *IMPLEMENTATIONS),
            _one_of(f"{part}.remat", "none", "named", "full"),
            _fraction(f"{part}.drop_path"),
            *(_at_least(f"{part}.{field}", 1) for field in ("width", "depth", "heads")),
        )
    ),
    _one_of("model.channels", 1, 3),
    _one_of("data.style", "auto", "csv", "path_label", "path_start_total"),
    _one_of("data.sampling", "dense", "window", "segments"),
    _one_of("data.select", "random", "centre", "views"),
    ("data.views", lambda v: len(v) == 2 and min(v) > 0, "must be (clips, crops) of a video"),
    _one_of("data.crop", "multi_scale", "resized", "views", "centre", "none"),
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
    ("model.tubelet", lambda v: len(v) == 3 and min(v) > 0, "must be (frames, rows, columns)"),
    ("optim.betas", lambda v: len(v) == 2 and 0 <= min(v) <= max(v) < 1, "two numbers in [0, 1)"),
    _positive("optim.lr_per_videos"),
    *(
        _at_least(f"optim.{field}", 0)
        for field in ("base_lr", "min_lr", "warmup_epochs", "weight_decay", "eps", "clip_norm")
    ),
    _at_least("optim.accumulate", 1),
    _at_least("optim.max_skipped_in_a_row", 1),
    _fraction("optim.ema_decay"),
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
