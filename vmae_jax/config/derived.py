"""Numbers that follow from a recipe and the size of its data; each is computed here and once."""

import dataclasses
import math

from ml_collections import ConfigDict

from vmae_jax.config.errors import ConfigError
from vmae_jax.ops import block_masks, masking
from vmae_jax.ops.patches import Grid, Tubelet, grid_of
from vmae_jax.variants import MViTSpec


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Token counts that follow from a pretraining recipe.

    Attributes:
      grid: tokens along (time, height, width).
      visible: tokens that the encoder sees.
      targets: tokens that the decoder predicts; those that are hidden, where there is none.
      patch_values: P, numbers in one patch.
    """

    grid: Grid
    visible: int
    targets: int
    patch_values: int


def clip_grid(config: ConfigDict, tubelet: Tubelet | None = None) -> Grid:
    """Tokens of a clip along (time, height, width).

    Args:
      config: the recipe.
      tubelet: of a network other than the one that is trained (a teacher).

    Raises:
      ConfigError: sizes that do not divide.
    """
    height, width = config.data.size
    try:
        return grid_of(
            frames=config.data.frames,
            height=height,
            width=width,
            tubelet=tubelet or config.model.tubelet,
        )
    except ValueError as error:
        raise ConfigError(f"config.data and the tubelet: {error}") from error


def patch_values(config: ConfigDict, tubelet: Tubelet | None = None) -> int:
    """P, the numbers in one patch."""
    return math.prod(tubelet or config.model.tubelet) * config.model.channels


def mvit_spec(config: ConfigDict) -> MViTSpec:
    """The size of a multiscale network.

    Raises:
      ConfigError: numbers that do not go together.
    """
    part = config.model.encoder
    try:
        spec = MViTSpec(**{field.name: part[field.name] for field in dataclasses.fields(MViTSpec)})
    except ValueError as error:
        raise ConfigError(f"config.model.encoder: {error}") from error
    if part.depth != spec.depth:
        raise ConfigError(
            f"config.model.encoder.depth={part.depth} is not the sum of its depths, "
            f"{spec.depths}: {spec.depth}"
        )
    return spec


def token_counts(config: ConfigDict) -> TokenCounts:
    """Token counts of a pretraining recipe.

    Raises:
      ConfigError: sizes that do not divide, ratios that leave nothing, or a mask that follows the
        attention of a teacher where there is none.
    """
    grid, kind = clip_grid(config), config.masking.encoder[0]
    if kind in masking.GUIDED_MASKS and "teacher" not in config:
        raise ConfigError(
            f"config.masking.encoder={config.masking.encoder}: {config.system!r} has no teacher "
            f"whose attention could guide it; choose one of {', '.join(masking.ENCODER_MASKS)}"
        )
    stacks = [name for name in ("encoder", "decoder") if name in config.masking]
    try:
        counts = masking.mask_counts(grid, **{name: config.masking[name] for name in stacks})
    except ValueError as error:
        raise ConfigError(f"config.masking: {error}") from error
    return TokenCounts(grid, counts.visible, counts.targets, patch_values(config))


def feature_tubelet(config: ConfigDict) -> Tubelet:
    """(frames, rows, columns) that a token of the encoder's last block stands for."""
    steps = [config.model.tubelet]
    if config.model.architecture == "mvit":
        steps += config.model.encoder.strides
    frames, rows, columns = (math.prod(axis) for axis in zip(*steps, strict=True))
    return frames, rows, columns


def mask_cells(config: ConfigDict) -> Grid:
    """Cells of a clip that MaskFeat hides or shows as one, along (time, height, width).

    Raises:
      ConfigError: cells that do not fit the clip or do not hold whole tokens, a ratio that hides
        nothing or all, histograms that do not fit the patches.
    """
    tubelet, cell = feature_tubelet(config), tuple(config.masking.cell)
    if len(cell) != 3 or any(c < 1 or c % t for c, t in zip(cell, tubelet, strict=True)):
        raise ConfigError(
            f"config.masking.cell={cell} must be multiples of {tubelet}, the frames, rows and "
            "columns that a predicted token stands for"
        )
    side = config.masking.hog_cell
    if config.masking.target == "hog" and (tubelet[1] % side or tubelet[2] % side):
        raise ConfigError(
            f"config.masking.hog_cell={side} pixels do not divide patches of "
            f"{tubelet[1]}x{tubelet[2]}"
        )
    cells = clip_grid(config, cell)
    kind, ratio = config.masking.encoder
    try:
        block_masks.cells_to_hide(kind, ratio=ratio, cells=cells)
    except ValueError as error:
        raise ConfigError(f"config.masking: {error}") from error
    return cells


def aligned_layers(config: ConfigDict, group: str) -> tuple[int, ...]:
    """Layers whose tokens are aligned, counted from 1, ascending.

    Args:
      config: the recipe.
      group: whose: "model" (the student) or "teacher".

    Raises:
      ConfigError: more than there are.
    """
    depth = config[group].encoder.depth
    field = {"model": "align.interval", "teacher": "teacher.interval"}[group]
    interval = config.align.interval if group == "model" else config.teacher.interval
    first = depth - (config.align.layers - 1) * interval
    if first < 1:
        raise ConfigError(
            f"config.align.layers={config.align.layers} with config.{field}={interval} begin at "
            f"layer {first}, but config.{group}.encoder has layers 1 to {depth}"
        )
    return tuple(range(first, depth + 1, interval))


def teacher_grid(config: ConfigDict) -> Grid:
    """Tokens of a clip along (time, height, width) in an image teacher, which are the student's.

    Raises:
      ConfigError: they are not, or sizes do not divide.
    """
    height, width = config.teacher.size
    try:
        grid = grid_of(
            frames=config.data.frames, height=height, width=width, tubelet=config.teacher.tubelet
        )
    except ValueError as error:
        raise ConfigError(f"config.teacher.size and config.teacher.tubelet: {error}") from error
    if grid != clip_grid(config):
        raise ConfigError(
            f"the teacher has tokens on a grid {grid} (teacher.size {config.teacher.size}, "
            f"teacher.tubelet {config.teacher.tubelet}), the student on {clip_grid(config)}; each "
            "token of the one is compared with one of the other, so the grids must be equal"
        )
    return grid


def teacher_frames(config: ConfigDict) -> int:
    """Frames of each clip that an image teacher looks at together.

    Raises:
      ConfigError: they do not divide the clip, or cut patches apart.
    """
    frames, deep = config.data.frames, config.teacher.tubelet[0]
    chunk = config.teacher.chunk or frames
    if frames % chunk or chunk % deep:
        raise ConfigError(
            f"config.teacher.chunk={chunk} frames must divide the {frames} of a clip and be a "
            f"multiple of {deep}, the frames of a patch (config.teacher.tubelet)"
        )
    return chunk


def mixed_clips(config: ConfigDict) -> int:
    """Adjacent clips that share one draw of mixup and meet each other in it.

    The greatest even number up to `augment.mix_clips` that divides a micro-batch, so that neither
    accumulation nor, where it divides a device's rows too, devices part a block. 1 where nothing is
    mixed.

    Raises:
      ConfigError: a micro-batch of an odd number of clips.
    """
    augment = config.augment
    if not augment.mix_prob or not (augment.mixup or augment.cutmix):
        return 1
    clips = config.train.batch_videos * config.data.repeats // config.optim.accumulate
    most = min(augment.mix_clips, clips)
    good = [n for n in range(2, most + 1, 2) if clips % n == 0]
    if not good:
        raise ConfigError(
            f"mixup needs pairs: config.augment.mix_clips={augment.mix_clips} and the "
            f"{clips} clips of a micro-batch (train.batch_videos x data.repeats / "
            "optim.accumulate) must both be at least 2, and the clips even"
        )
    return good[-1]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Numbers of a run that follow from the recipe and the size of its data.

    Attributes:
      steps_per_epoch: full global batches in one pass over the videos; the rest is dropped.
      total_steps, warmup_steps: of the whole schedule.
      start_lr, peak_lr, floor_lr: learning rates after scaling to the global batch.
      clips_per_step: crops in a global batch.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    start_lr: float
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
        start_lr=config.optim.warmup_lr * scale,
        peak_lr=config.optim.base_lr * scale,
        floor_lr=config.optim.min_lr * scale,
        clips_per_step=batch * config.data.repeats,
    )


def check_devices(config: ConfigDict, num_devices: int) -> None:
    """Checks that every (micro-)batch splits evenly over the devices.

    Raises:
      ConfigError: it does not; names a batch that does.
    """
    parts, (rows, what) = config.optim.accumulate, rows_of_a_batch(config)
    if rows % (num_devices * parts):
        per_video = rows // config.train.batch_videos
        step = math.lcm(num_devices * parts, per_video) // per_video
        good = math.ceil(config.train.batch_videos / step) * step
        raise ConfigError(
            f"config.train.batch_videos={config.train.batch_videos} gives {rows} {what} a step, "
            f"which {num_devices} devices x {parts} micro-batches cannot share evenly; set it to a "
            f"multiple of {step}, e.g. {good}"
        )


def clips_of_a_window(config: ConfigDict) -> int:
    """Clips of a video that are crops of the same frames."""
    return 1 if config.data.repeat_windows else config.data.repeats


def rows_of_a_batch(config: ConfigDict) -> tuple[int, str]:
    """What a global batch can be split into, number and name: clips, but videos where the clips of
    a video are cut on the device that has its frames."""
    if config.data.resize == "device" and clips_of_a_window(config) > 1:
        return config.train.batch_videos, "videos"
    return config.train.batch_videos * config.data.repeats, "clips"
