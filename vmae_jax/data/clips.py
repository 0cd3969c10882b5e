"""The clips of one video: which frames, read how, cut how. Runs in a worker."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae_jax.data import guard as guards
from vmae_jax.data import randaugment, sampling, transforms
from vmae_jax.data.folders import DEFAULT_TEMPLATES, Choose
from vmae_jax.data.order import Order
from vmae_jax.data.source import Source
from vmae_jax.data.sources import open_source
from vmae_jax.data.stages import STAGES, recorded, stage
from vmae_jax.data.stored import StoredVideo
from vmae_jax.data.video import Limits, VideoError
from vmae_jax.errors import UserError

_ATTEMPTS = 8  # videos tried for one place in a batch before the run stops
_REASON_BYTES = 200
CLOSED = "The pipeline is closed."

SELECTS = ("random", "centre", "views")
CROPS = ("multi_scale", "resized", "views", "centre", "none")
_DRAWN_CROPS = ("multi_scale", "resized")
RESIZES = ("host", "device")


class PipelineError(UserError, RuntimeError):
    """The pipeline cannot go on: too many bad videos, a dead or a stuck worker."""


class WorkerError(PipelineError):
    """A worker died or failed in a way that has nothing to do with the rules for bad videos."""


@dataclass(frozen=True)
class PipelineOptions:
    """What is read and how. Everything but `manifest` has the released default.

    Attributes:
      manifest: what to read: a list of videos; see `sources`.
      root: folder or bucket that its paths are relative to; "": the manifest's own.
      style: of the manifest, or "auto".
      allow_outside: accept paths that leave the root.
      frames: per clip.
      stride: between frames, with "seconds" at `fps` frames a second; "segments" and "sparse" need
        none.
      stride_overrides: (regex searched in the path, stride) pairs; the first match counts.
      sampling: "dense" (pretraining), "window" (fine-tuning), "segments", "seconds" (MAE-ST,
        MaskFeat), or "sparse" (Unmasked Teacher's fine-tuning); see `sampling`.
      fps: nominal rate of "seconds": a clip lasts `frames * stride / fps` seconds of any video.
      select: "random" frames (training), those in the "centre" (validation), or test "views".
      views: (clips, crops) of each video with select="views".
      size: (height, width) of the clips.
      channels: 3 (RGB) or 1 (grey).
      crop: "multi_scale" (random, pretraining), "resized" (random, fine-tuning), "views" (frames
        resized until they just cover the size, crops along the longer side: `views[1]` of them
        with select="views", else the one in the middle), "centre" (largest centred box), "none"
        (whole frame, squeezed).
      short_side: of crop="views": the frames are resized as for a size whose shorter side is this,
        before the size is cut; 0: as for the size itself.
      scales: of the multi-scale crop.
      crop_area: least and most area of the "resized" crop, as shares of the frame.
      crop_aspect: its least and most width / height.
      randaugment: (magnitude, operations, deviation of the magnitude) of `randaugment`, e.g.
        (7, 4, 0.5), drawn for each crop and applied before it; (): none.
      filter: that resizes, "antialias" (released pretraining) or "bilinear" (fine-tuning and test).
      resize: where crops are cut out and resized: "host" (Pillow), or "device", which gets one
        source clip and the boxes of its crops.
      canvas: (height, width) of the source clips that go to the device.
      repeats: clips taken of a video each time that it is read; they are adjacent in the batch.
      repeat_windows: each of them has frames of its own, else they are crops of the same ones.
      frame_templates: (regex, file name) pairs for folders of frames; see `folders`.
      on_error: "raise" stops at the first bad video; "skip" takes another, counted and logged.
      max_error_rate: with "skip", the share of bad videos above which the run stops ...
      min_errors: ... once so many were met.
      clip_timeout_s: time for one video.
      stall_timeout_s: longest wait for one message of a worker, from when its clips are asked for,
        before the run stops. Two minutes more are allowed while workers start.
      max_bytes, max_pixels, max_frames: caps on one video.
      workers: decoding processes; 0 decodes in the calling one.
      max_worker_restarts: how often workers are started anew, at the batch at which one of them
        died, before the run stops.
      worker_buffer: messages that each worker prepares ahead.
      worker_videos: videos in one message of a worker; must divide the videos per process.
        0: as many as fit in 64 MiB.
      shuffle: reshuffle in each epoch.
    """

    manifest: str
    root: str = ""
    style: str = "auto"
    allow_outside: bool = False
    frames: int = 16
    stride: int = 4
    stride_overrides: tuple[tuple[str, int], ...] = ()
    sampling: str = "dense"
    fps: float = 30.0
    select: str = "random"
    views: tuple[int, int] = (5, 3)
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    crop: str = "multi_scale"
    short_side: int = 0
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    randaugment: tuple[float, ...] = ()
    filter: str = "antialias"
    resize: str = "host"
    canvas: tuple[int, int] = (256, 456)
    repeats: int = 1
    repeat_windows: bool = False
    frame_templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES
    on_error: str = "raise"
    max_error_rate: float = 0.01
    min_errors: int = 10
    clip_timeout_s: float = 60.0
    stall_timeout_s: float = 600.0
    max_bytes: int = Limits.max_bytes
    max_pixels: int = Limits.max_pixels
    max_frames: int = Limits.max_frames
    workers: int = 0
    max_worker_restarts: int = 0
    worker_buffer: int = 1
    worker_videos: int = 0
    shuffle: bool = True

    def __post_init__(self):
        for name, choices in (
            ("sampling", sampling.SAMPLINGS),
            ("select", SELECTS),
            ("crop", CROPS),
            ("filter", transforms.FILTERS),
            ("resize", RESIZES),
            ("on_error", ("raise", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(choices)}."
                )
        for name in ("frames", "stride", "repeats", "worker_buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("workers", "max_worker_restarts", "worker_videos"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        for name in ("size", "canvas"):
            value = getattr(self, name)
            if len(value) != 2 or min(value) < 1:
                raise ValueError(f"{name} must be (height, width), got {value}.")
        if len(self.views) != 2 or min(self.views) < 1:
            raise ValueError(f"views must be (clips, crops) of a video, got {self.views}.")
        for name, most in (("crop_area", 1.0), ("crop_aspect", math.inf)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                raise ValueError(
                    f"{name} must be (least, most), 0 < least <= most <= {most:g}, got {value}."
                )
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be a positive number, got {self.fps}.")
        if self.short_side and self.short_side < min(self.size):
            raise ValueError(
                f"short_side={self.short_side} is less than the shorter side of size={self.size}, "
                "which is cut from it; set it to 0 or to more."
            )
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}; choose 3 (RGB) or 1 (grey).")
        for pattern, stride in self.stride_overrides:
            re.compile(pattern)
            if stride < 1:
                raise ValueError(f"The stride for {pattern!r} must be positive, got {stride}.")
        self._check_choices_together()

    def _check_choices_together(self) -> None:
        if self.select != "random" and self.crop in _DRAWN_CROPS:
            raise ValueError(
                f'select="{self.select}" leaves nothing to chance, but crop="{self.crop}" is '
                'drawn; choose crop="views", "centre" or "none".'
            )
        if self.randaugment:
            if len(self.randaugment) != 3:
                raise ValueError(
                    "randaugment must be (magnitude, operations, deviation) or (), got "
                    f"{self.randaugment}."
                )
            magnitude, count, deviation = self.randaugment
            in_range = 0 <= magnitude <= randaugment.MAX_MAGNITUDE and deviation >= 0
            if not in_range or count < 1 or count != int(count):
                raise ValueError(
                    f"randaugment={self.randaugment}: the magnitude must lie in [0, "
                    f"{randaugment.MAX_MAGNITUDE:g}], the number of operations be 1 or more, and "
                    "the deviation be 0 or more."
                )
            if self.select != "random":
                raise ValueError(
                    f'select="{self.select}" leaves nothing to chance; set randaugment=().'
                )
            if self.resize == "device" and self.repeats > self.windows:
                raise ValueError(
                    'with resize="device" the crops of a video share its frames, but randaugment '
                    'changes them for each crop; choose resize="host", repeats=1 or repeat_windows.'
                )
        if self.select == "views":
            if self.repeats > 1:
                raise ValueError(
                    f'select="views" gives views[0] * views[1] clips of a video, so repeats must '
                    f"be 1, got {self.repeats}."
                )
            if self.views[1] > 1 and self.crop != "views":
                raise ValueError(
                    f'crop="{self.crop}" gives one crop of a clip, but views={self.views} asks for '
                    f'{self.views[1]}; choose crop="views" or one crop.'
                )
        if self.resize == "device" and "views" in (self.select, self.crop):
            raise ValueError('views are cut on the host; choose resize="host".')

    @property
    def clips(self) -> int:
        """Clips that a video gives; they are adjacent in the batch."""
        return math.prod(self.views) if self.select == "views" else self.repeats

    @property
    def windows(self) -> int:
        """Stretches of frames that are read of a video for its clips."""
        if self.select == "views":
            return self.views[0]
        return self.repeats if self.repeat_windows else 1

    @property
    def limits(self) -> Limits:
        """Caps on one video."""
        return Limits(self.max_bytes, self.max_pixels, self.max_frames, self.clip_timeout_s)

    def open_source(self) -> Source:
        """Opens what `manifest` names; see `sources.open_source` for what can be wrong with it."""
        return open_source(
            self.manifest,
            root=self.root,
            style=self.style,
            allow_outside=self.allow_outside,
            templates=self.frame_templates,
        )


@dataclass(frozen=True)
class LoadClips:
    """Makes the clips of one video. Called in a worker with the number of the video in its part."""

    source: Source
    order: Order
    options: PipelineOptions
    process_index: int
    process_count: int
    start_step: int
    folder: Path

    def __call__(self, item: int) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        with recorded() as seconds:
            element = self._element(item)
        element["stage_s"] = np.array([seconds[name] for name in STAGES])
        element["decode_s"] = np.float64(time.perf_counter() - began)
        return element

    def _element(self, item: int) -> dict[str, np.ndarray]:
        guard = guards.of(self.folder)
        if guard is None or guard.stopped():
            raise PipelineError(CLOSED)
        block = self.order.batch_videos // self.process_count
        step, row = divmod(int(item), block)
        positions = self.order.local_positions(
            self.start_step + step, self.process_index, self.process_count
        )
        return {**self._load(positions[row], guard), "worker": np.int64(guard.worker)}

    def _load(self, position: int, guard: guards.Guard) -> dict[str, np.ndarray]:
        _, offset, record = self.order.locate(position)
        failed_record = np.full(_ATTEMPTS, -1, np.int64)
        failed_reason = np.zeros((_ATTEMPTS, _REASON_BYTES), np.uint8)
        clips, pixels, label = self.options.clips, None, -1
        for attempt in range(_ATTEMPTS):
            if record < 0:  # nobody's place in a single pass
                break
            try:
                pixels, label = self._clips(record, self.order.rng(position, attempt), guard)
                break
            except VideoError as error:
                if self.options.on_error == "raise":
                    raise
                reason = np.frombuffer(error.reason.encode()[:_REASON_BYTES], np.uint8)
                failed_record[attempt], failed_reason[attempt, : len(reason)] = record, reason
                record = self.order.substitute(position, attempt + 1)
        else:
            raise PipelineError(
                f"{_ATTEMPTS} videos in a row could not be used, the last "
                f"{self.source.name(int(failed_record[-1]))}: "
                f"{failed_reason[-1].tobytes().rstrip(bytes(1)).decode(errors='replace')}."
            )
        index = (offset * clips + np.arange(clips)).astype(np.int32)
        return {
            **(pixels or black(self.options)),
            "index": index if pixels else np.full(clips, -1, np.int32),
            "label": np.full(clips, label, np.int32),
            "record": np.int64(record),
            "failed_record": failed_record,
            "failed_reason": failed_reason,
        }

    def _clips(
        self, record: int, rng: np.random.Generator, guard: guards.Guard
    ) -> tuple[dict[str, np.ndarray], int]:
        """Decodes once; the pixels of the video's clips for the batch, and the label."""
        options = dataclasses.replace(self.options, **self.source.overrides(record))
        where = self.source.where(record)
        with guard.clip(where):
            with stage("read"):
                stored = self.source.fetch(record, options.limits)
            choose = functools.partial(choose_frames, where=where, options=options, rng=rng)
            frames = read_clip(stored, choose, options)
            return take_crops(frames, options=options, rng=rng), stored.label


def read_clip(stored: StoredVideo, choose: Choose, options: PipelineOptions) -> np.ndarray:
    """Decodes chosen frames of one video, in the colours that the options ask for.

    Args:
      stored: the video, as its source handed it out.
      choose: frame indices, or a function from the number of usable frames to indices.
      options: `limits` and `channels` count.

    Returns:
      uint8 [n, H, W, channels].

    Raises:
      VideoError: the video or a frame needed for the clip is unusable.
    """
    with stage("decode"):
        frames = stored.read(choose, options.limits)
    if options.channels == 3:
        return frames
    with stage("convert"):
        return transforms.to_grey(frames)


def choose_frames(
    num_frames: int,
    fps: float,
    *,
    where: str,
    options: PipelineOptions,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the frames of a video's clips by the rule that the options name.

    Args:
      num_frames: usable frames of the video.
      fps: frames per second; NaN where nobody knows.
      where: place of the video, in which `stride_overrides` are searched.
      options: frames, sampling, fps, select, views, repeats and strides count.
      rng: of the video.

    Returns:
      int64 [windows * frames], one stretch after another; `options.windows` says how many.

    Raises:
      VideoError: the rule goes by seconds, and the video has no rate.
    """
    frames, clips = options.frames, options.views[0]
    stride = next(
        (s for pattern, s in options.stride_overrides if re.search(pattern, where)),
        options.stride,
    )
    match options.sampling:
        case "segments":
            views, draw = sampling.segment_views, sampling.segment_indices
            rule = {"frames": frames}
        case "sparse":
            views, draw = sampling.sparse_views, sampling.sparse_indices
            rule = {"frames": frames}
        case "seconds":
            if math.isnan(fps):
                raise VideoError(
                    where, 'has no frame rate, which sampling="seconds" needs; choose "window"'
                )
            views, draw = sampling.seconds_views, sampling.seconds_indices
            rule = {"frames": frames, "length": frames * stride / options.fps * fps}
        case kind:
            views = sampling.dense_views
            draw = sampling.dense_indices if kind == "dense" else sampling.window_indices
            rule = {"frames": frames, "stride": stride}
    if options.select == "views":
        return views(num_frames, **rule, clips=clips).ravel()
    chance = rng if options.select == "random" else None
    return np.concatenate([draw(num_frames, **rule, rng=chance) for _ in range(options.windows)])


def take_crops(
    frames: np.ndarray, *, options: PipelineOptions, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Makes the clips of one video from its frames, as far as that is done on the host.

    Args:
      frames: uint8 [T, H, W, C], those of `options.windows` stretches one after another.
      options: crop, size, filter, repeats, views and where to resize count.
      rng: of the video.

    Returns:
      {"video": uint8 [R, T, height, width, C]}, R = `options.clips`, crops of a clip adjacent; with
      `resize="device"`, of the same boxes, {"source": uint8 [windows, T, *canvas, C], "box":
      float32 [R, 4]}.
    """
    stretches = np.split(frames, len(frames) // options.frames)
    copies = 1 if options.repeat_windows else options.repeats  # of each stretch
    if options.resize == "device":
        laid = [_laid(stretch, copies, options, rng) for stretch in stretches]
        sources, boxes = zip(*laid, strict=True)
        with stage("crop"):
            return {"source": np.stack(sources), "box": np.concatenate(boxes)}
    crops = [
        crop
        for stretch in stretches
        for _ in range(copies)
        for crop in _crops(stretch, options, rng)
    ]
    with stage("crop"):
        return {"video": np.stack(crops)}


def _laid(
    frames: np.ndarray, copies: int, options: PipelineOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One clip laid on the canvas, and the boxes of its crops there."""
    boxes = [draw_box(*frames.shape[1:3], options=options, rng=rng) for _ in range(copies)]
    frames = _augmented(frames, options, rng)
    with stage("crop"):
        return transforms.lay_on_canvas(frames, boxes, options.canvas)


def _crops(
    frames: np.ndarray, options: PipelineOptions, rng: np.random.Generator
) -> list[np.ndarray]:
    """The crops of one clip: all those of a test, or one."""
    frames = _augmented(frames, options, rng)
    with stage("crop"):
        if options.crop == "views":
            crops = options.views[1] if options.select == "views" else 1
            return transforms.view_crops(
                frames,
                size=options.size,
                crops=crops,
                resample=options.filter,
                short_side=options.short_side,
            )
        box = draw_box(*frames.shape[1:3], options=options, rng=rng)
        return [transforms.crop_resize(frames, box, options.size, options.filter)]


def black(options: PipelineOptions) -> dict[str, np.ndarray]:
    """What stands in the place of a video that is not there, as `take_crops` would give it."""
    if options.resize == "device":
        shape = (options.windows, options.frames, *options.canvas, options.channels)
        whole = np.array([0, 0, *options.canvas], np.float32)
        return {"source": np.zeros(shape, np.uint8), "box": np.tile(whole, (options.repeats, 1))}
    shape = (options.clips, options.frames, *options.size, options.channels)
    return {"video": np.zeros(shape, np.uint8)}


def _augmented(
    frames: np.ndarray, options: PipelineOptions, rng: np.random.Generator
) -> np.ndarray:
    if not options.randaugment:
        return frames
    magnitude, count, deviation = options.randaugment
    drawn = randaugment.draw_operations(
        magnitude=magnitude, count=int(count), deviation=deviation, rng=rng
    )
    with stage("augment"):
        return randaugment.augment(frames, drawn)


def draw_box(
    height: int, width: int, *, options: PipelineOptions, rng: np.random.Generator
) -> transforms.Box:
    """Draws the place of one crop in frames of the given size, by the rule that options name."""
    if options.crop == "multi_scale":
        return transforms.multi_scale_crop_box(
            height, width, size=options.size, scales=options.scales, rng=rng
        )
    if options.crop == "resized":
        return transforms.random_resized_crop_box(
            height, width, area=options.crop_area, aspect=options.crop_aspect, rng=rng
        )
    if options.crop == "centre":
        return transforms.centre_crop_box(height, width, size=options.size)
    return transforms.Box(0, 0, width, height)
