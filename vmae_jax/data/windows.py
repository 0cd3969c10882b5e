"""Sliding windows over videos of any length: frames come one at a time and go when nothing needs
them any more.

The frames of a window are cropped by the functions that training and tests use (`clips`), each
frame once, however many windows it is part of.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vmae_jax.data import transforms
from vmae_jax.data.clips import PipelineError, PipelineOptions, take_crops
from vmae_jax.data.source import Source
from vmae_jax.data.video import VideoError

_POLL_S = 0.2  # how soon a thread that waits notices that it is to stop
_JOIN_S = 5.0  # for it to end; one that is stuck in a decoder never will


@dataclasses.dataclass(frozen=True)
class Sliding:
    """How windows lie on a video: window k has the frames k * step + i * stride, i < frames."""

    frames: int
    stride: int
    step: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} of a sliding window must be positive, got {value}.")

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window, both included."""
        return (self.frames - 1) * self.stride + 1


class Window(NamedTuple):
    """One window of a video.

    Attributes:
      frames: as many arrays as it has frames.
      index: int64 [frames], which frames of the video these are.
      padded: whether the video is shorter than a window, and its last frame repeated.
    """

    frames: tuple[np.ndarray, ...]
    index: np.ndarray
    padded: bool


class End(NamedTuple):
    """A video is over.

    Attributes:
      label: class number, -1 if there is none.
      times: float64 [frames], seconds from the first frame of the file to each usable one, NaN
        where nobody knows.
      error: why the video cannot be used; what came of it so far is to be forgotten.
    """

    label: int = -1
    times: np.ndarray | None = None
    error: VideoError | None = None


def windows(
    frames: Iterable[np.ndarray],
    sliding: Sliding,
    prepare: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
) -> Iterator[Window]:
    """The windows of one video that lie in it whole; of a shorter video one, padded.

    Args:
      frames: of the video in order. At most `sliding.span` of them are held.
      sliding: where windows lie.
      prepare: is done to each frame that is part of a window, once.
    """
    held: collections.deque[np.ndarray | None] = collections.deque(maxlen=sliding.span)
    offsets = np.arange(sliding.frames) * sliding.stride
    count, last = 0, None
    for last in frames:
        held.append(prepare(last) if _is_used(count, sliding) else None)
        count += 1
        start = count - sliding.span
        if start >= 0 and start % sliding.step == 0:
            yield Window(tuple(held[i] for i in offsets), start + offsets, False)
    if 0 < count < sliding.span:
        if held[-1] is None:
            held[-1] = prepare(last)
        index = np.minimum(offsets, count - 1)
        yield Window(tuple(held[i] for i in index), index, True)


def _is_used(i: int, sliding: Sliding) -> bool:
    """Whether frame `i` is part of a window, if the video is long enough."""
    first = max(0, math.ceil((i - sliding.span + 1) / sliding.step)) * sliding.step
    return any((i - start) % sliding.stride == 0 for start in range(first, i + 1, sliding.step))


def crop_frame(frame: np.ndarray, options: PipelineOptions) -> np.ndarray:
    """One frame as it is in the clips of a pipeline with these options.

    Args:
      frame: uint8 [H, W, 3].
      options: channels, crop, size and filter count; nothing in them may be left to chance.

    Returns:
      uint8 [height, width, channels].
    """
    single = dataclasses.replace(options, frames=1)
    if options.channels == 1:
        frame = transforms.to_grey(frame[None])[0]
    unused = np.random.default_rng(0)
    return take_crops(frame[None], options=single, rng=unused)["video"][0, 0]


class WindowFeed:
    """The windows of many videos, decoded by threads and a bounded number ahead.

    Windows of a video come in their order, its `End` after them; those of different videos mix. Use
    as a context manager: it ends the threads.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[int],
        *,
        sliding: Sliding,
        options: PipelineOptions,
        workers: int,
        ahead: int,
    ):
        """
        Args:
          source: of the videos.
          records: which of them.
          sliding: where windows lie.
          options: how frames are cropped, `stall_timeout_s`, and limits on a video; the one on its
            time does not count, since a thread may have to wait for room.
          workers: threads; each decodes one video at a time.
          ahead: windows that are held ready.
        """
        self._source, self._sliding, self._options = source, sliding, options
        self._limits = dataclasses.replace(options.limits, timeout_s=math.inf)
        self._left = len(records)
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for record in records:
            self._todo.put(record)
        self._ready: queue.Queue[tuple[int, Window | End] | Exception] = queue.Queue(ahead)
        self._at: dict[int, str] = {}  # videos that are being decoded
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"windows-{i}", daemon=True)
            for i in range(min(workers, len(records)))
        ]

    def __enter__(self) -> WindowFeed:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def __iter__(self) -> Iterator[tuple[int, Window | End]]:
        """Yields (record, one of its windows or its end).

        Raises:
          PipelineError: nothing came for `options.stall_timeout_s`.
          whatever else than a VideoError a thread met.
        """
        while self._left:
            try:
                item = self._ready.get(timeout=self._options.stall_timeout_s)
            except queue.Empty:
                busy = ", ".join(list(self._at.values()))
                raise PipelineError(
                    f"no window came for {self._options.stall_timeout_s:g} s while decoding "
                    f"{busy}; put an empty file in the place of one that hangs the decoder, and "
                    "go on"
                ) from None
            if isinstance(item, Exception):
                raise item
            self._left -= isinstance(item[1], End)
            yield item

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                record = self._todo.get_nowait()
                for event in self._events(record):
                    if not self._put((record, event)):
                        return
        except queue.Empty:
            return
        except Exception as error:  # delivered to whoever iterates
            self._put(error)

    def _events(self, record: int) -> Iterator[Window | End]:
        counted, where = _Counted(), self._source.where(record)
        self._at[record] = where
        try:
            stored = self._source.fetch(record, self._limits)
            frames = counted.each(stored.frames(self._limits), where)
            yield from windows(frames, self._sliding, lambda f: crop_frame(f, self._options))
            yield End(stored.label, stored.times(counted.count, self._limits))
        except VideoError as error:
            yield End(error=error)
        finally:
            del self._at[record]

    def _put(self, item: tuple[int, Window | End] | Exception) -> bool:
        """Waits for room; False if there is nobody left to take it."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False


class _Counted:
    """Counts the frames that pass, and sees that they are of one size."""

    count = 0

    def each(self, frames: Iterable[np.ndarray], where: str) -> Iterator[np.ndarray]:
        shape = None
        for frame in frames:
            if shape not in (None, frame.shape):
                raise VideoError(where, f"the picture size changes: {sorted({shape, frame.shape})}")
            shape = frame.shape
            self.count += 1
            yield frame
        if not self.count:
            raise VideoError(where, "no picture can be decoded")
