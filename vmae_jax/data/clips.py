"""The clips of one video: which frames, read how, cut how. Runs in a worker."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae_jax.data import guard as guards
from vmae_jax.data import sampling, transforms
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

CROPS = ("multi_scale", "centre", "none")
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
      stride: between frames, for "dense" sampling.
      stride_overrides: (regex searched in the path, stride) pairs; the first match counts.
      sampling: "dense" or "segments"; see `sampling`.
      size: (height, width) of the clips.
      channels: 3 (RGB) or 1 (grey).
      crop: "multi_scale" (random), "centre" (largest centred box), "none" (whole frame, squeezed).
      scales: of the multi-scale crop.
      resize: where crops are cut out and resized: "host" (Pillow), or "device", which gets one
        source clip and the boxes of its crops.
      canvas: (height, width) of the source clips that go to the device.
      repeats: crops drawn from one decoded stretch of frames; copies are adjacent in the batch.
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
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    crop: str = "multi_scale"
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    resize: str = "host"
    canvas: tuple[int, int] = (256, 456)
    repeats: int = 1
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
            ("crop", CROPS),
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
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}; choose 3 (RGB) or 1 (grey).")
        for pattern, stride in self.stride_overrides:
            re.compile(pattern)
            if stride < 1:
                raise ValueError(f"The stride for {pattern!r} must be positive, got {stride}.")

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
        for attempt in range(_ATTEMPTS):
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
        repeats = self.options.repeats
        return {
            **pixels,
            "index": (offset * repeats + np.arange(repeats)).astype(np.int32),
            "label": np.full(repeats, label, np.int32),
            "record": np.int64(record),
            "failed_record": failed_record,
            "failed_reason": failed_reason,
        }

    def _clips(
        self, record: int, rng: np.random.Generator, guard: guards.Guard
    ) -> tuple[dict[str, np.ndarray], int]:
        """Decodes once and crops `repeats` times; the pixels for the batch, and the label."""
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
    num_frames: int, *, where: str, options: PipelineOptions, rng: np.random.Generator
) -> np.ndarray:
    """Draws the frames of one clip by the rule that the options name.

    Args:
      num_frames: usable frames of the video.
      where: place of the video, in which `stride_overrides` are searched.
      options: frames, sampling and strides count.
      rng: of the clip.

    Returns:
      int64 [frames].
    """
    if options.sampling == "segments":
        return sampling.segment_indices(num_frames, frames=options.frames, rng=rng)
    stride = next(
        (s for pattern, s in options.stride_overrides if re.search(pattern, where)),
        options.stride,
    )
    return sampling.dense_indices(num_frames, frames=options.frames, stride=stride, rng=rng)


def take_crops(
    frames: np.ndarray, *, options: PipelineOptions, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Makes the clips of one video from its frames, as far as that is done on the host.

    Args:
      frames: uint8 [T, H, W, C].
      options: crop, size, repeats and where to resize count.
      rng: of the video.

    Returns:
      {"video": uint8 [R, T, height, width, C]}; with `resize="device"`, of the same boxes,
      {"source": uint8 [1, T, *canvas, C], "box": float32 [R, 4]}.
    """
    boxes = [draw_box(*frames.shape[1:3], options=options, rng=rng) for _ in range(options.repeats)]
    with stage("crop"):
        if options.resize == "host":
            clips = [transforms.crop_resize(frames, box, options.size) for box in boxes]
            return {"video": np.stack(clips)}
        source, places = transforms.lay_on_canvas(frames, boxes, options.canvas)
        return {"source": source[None], "box": places}


def draw_box(
    height: int, width: int, *, options: PipelineOptions, rng: np.random.Generator
) -> transforms.Box:
    """Draws the place of one crop in frames of the given size, by the rule that options name."""
    if options.crop == "multi_scale":
        return transforms.multi_scale_crop_box(
            height, width, size=options.size, scales=options.scales, rng=rng
        )
    if options.crop == "centre":
        return transforms.centre_crop_box(height, width, size=options.size)
    return transforms.Box(0, 0, width, height)
