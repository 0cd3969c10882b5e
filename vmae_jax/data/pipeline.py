"""The input pipeline: a manifest in, uint8 batches of clips out, in an order fixed by the seed.

A batch is a function of the seed and the step. Worker processes, the number of hosts and the place
of a restart change when a batch is ready, never what is in it. The order is in `order`, the
clips of one video in `clips`; here they are run in grain workers, put together, and watched.

Workers are started by spawning, so a script that makes a pipeline with `workers > 0` must guard its
entry with `if __name__ == "__main__":`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import gc
import logging
import math
import multiprocessing
import os
import queue
import re
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmae_jax.data import guard as guards
from vmae_jax.data.clips import (
    CLOSED,
    LoadClips,
    PipelineError,
    PipelineOptions,
    WorkerError,
    black,
    choose_frames,
    read_clip,
    take_crops,
)
from vmae_jax.data.order import Order, Pass
from vmae_jax.data.source import Source
from vmae_jax.errors import UserError

__all__ = [
    "ClipPipeline",
    "Failure",
    "HostBatch",
    "PipelineError",
    "PipelineOptions",
    "WorkerError",
    "choose_frames",
    "read_clip",
    "take_crops",
]

_log = logging.getLogger(__name__)

_LOGGED_FAILURES = 20
_START_S = 120.0  # for a worker to start: processes, imports, the list
_ANSWER_S = 5.0  # for workers to answer that they stop, before they are killed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_ENDLESS = 2**40  # elements; a run takes what it needs
# Options that decide what is seen at a position of the run.
_CLIP_FACTS = (
    *("frames", "stride", "stride_overrides", "sampling"),
    *("size", "crop", "scales", "channels"),
)
# Those that came later: a state without them is of clips made with their defaults.
_LATER_FACTS = (
    *("select", "views", "crop_area", "crop_aspect", "randaugment", "filter"),
    *("fps", "short_side", "repeat_windows"),
)
_BATCH_ARRAYS = ("video", "source", "box", "index", "label")  # what else comes is about them
_CHUNK_BYTES = 64 << 20  # of one message from a worker, when its size is left open


@dataclass(frozen=True)
class Failure:
    """A video that was replaced, or in a single pass left out."""

    record: int
    path: str
    reason: str


@dataclass
class HostBatch:
    """One process's part of a global batch.

    Attributes:
      arrays: "video" uint8 [b * R, T, H, W, C], "index" int32 [b * R], "label" int32 [b * R]; with
        `resize="device"` in place of "video": "source" uint8 [b * W, T, *canvas, C] and "box"
        float32 [b * R, 4], top, left, height and width on the canvas. R is `options.clips`, W
        `options.windows`.
      records: int64 [b], records of the source that were used, replacements included; -1 where
        there is no video (single passes only).
      failures: videos that were replaced, or left out, in this batch.
      decode_s: float64 [b], seconds from reading a video to its last crop.
      stage_s: float64 [b, len(STAGES)], processor time by stage; see `stages`.
      worker: int64 [b], which worker made it.
      restarts: times that the workers of this pipeline have been started anew.
    """

    arrays: dict[str, np.ndarray]
    records: np.ndarray
    failures: list[Failure]
    decode_s: np.ndarray
    stage_s: np.ndarray
    worker: np.ndarray
    restarts: int
    _source: Source = field(repr=False)

    def names(self) -> list[str]:
        """Listed path of each video, in order; "" where there is none."""
        records = self.records.tolist()
        return [self._source.name(record) if record >= 0 else "" for record in records]


class ClipPipeline:
    """An iterator over the batches of a run, from any step on: endless, or over a single pass.

    Use as a context manager, or call `close()`: it ends the workers. One thread may call `next()`
    while another one calls `close()`; the first then gets a `PipelineError`.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        options: PipelineOptions,
        *,
        batch_videos: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
        once: bool = False,
    ):
        """
        Args:
          options: what is read and how.
          batch_videos: videos per global batch; it yields `batch_videos * options.clips` clips.
          seed: of order, frames and crops.
          process_index: which contiguous part of each batch is read here.
          process_count: parts of a batch.
          start_step: batches to leave out; costs nothing.
          once: every video exactly once, in the order of the source, then the end; `shuffle` and
            the shares of a mixture do not count. Batches keep their size: in rows that are left
            over, and in those of a bad video (with `on_error="skip"`), `index` is -1 and the
            pixels are black. Nothing takes the place of a bad video; it is in `failures`.

        Raises:
          ManifestError, ValueError: the manifest or a number is unusable.
        """
        if start_step < 0:
            raise ValueError(f"start_step must be 0 or more, got {start_step}.")
        self._options = options
        self._source = options.open_source()
        self._once = once
        if once:
            self._order = Pass(len(self._source), batch_videos, seed)
        else:
            self._order = Order(
                len(self._source), batch_videos, seed, options.shuffle, self._source.shares
            )
        if self._order.epoch_videos * options.clips >= 2**31:
            raise ValueError(
                "An epoch holds more than 2**31 clips; `index` would not fit in int32."
            )
        self._local_videos = len(self._order.local_positions(0, process_index, process_count))
        self._chunk = _chunk_videos(options, self._local_videos)
        self._step = start_step
        self._videos_seen = self._num_failures = self._num_restarts = 0
        self._process = process_index, process_count
        self._lock = threading.RLock()  # held while anything is started or ended
        self._iterator: Iterator[dict[str, np.ndarray]] | None = None
        self._fetcher: _Fetcher | None = None
        self._folder: Path | None = None
        self._closed = False
        atexit.register(_close_if_alive, weakref.ref(self))

    @property
    def source(self) -> Source:
        """The videos, by number: names, labels, what identifies them."""
        return self._source

    @property
    def num_videos(self) -> int:
        """Videos of an epoch, the incomplete batch at its end included."""
        return self._order.num_draws

    @property
    def num_classes(self) -> int:
        """Class names if there are any, else the largest label plus one; 0 without labels."""
        return self._source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; () if the list comes without them."""
        return self._source.class_names

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the list; all batches of a single pass."""
        return self._order.steps_per_epoch

    @property
    def batch_videos(self) -> int:
        """Videos in a global batch, over all processes."""
        return self._order.batch_videos

    @property
    def num_failures(self) -> int:
        """Videos replaced or left out since this pipeline was made."""
        return self._num_failures

    def __enter__(self) -> ClipPipeline:
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def __iter__(self) -> ClipPipeline:
        return self

    def __next__(self) -> HostBatch:
        """Waits for the next batch.

        Raises:
          PipelineError: too many bad videos, dead workers beyond the restarts that are allowed, a
            stuck one, or the pipeline is closed.
          VideoError: the first bad video, with `on_error="raise"`.
          StopIteration: the single pass is over.
        """
        if self._once and self._step >= self.steps_per_epoch:
            raise StopIteration
        try:
            batch = self._next_batch()
        except BaseException as error:
            was_closed = self._closed  # before, or by another thread
            self.close()
            if was_closed and isinstance(error, Exception):
                raise PipelineError(CLOSED) from None
            raise
        self._step += 1
        self._account(batch)
        return batch

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a batch of this process in which there is no video."""
        rows = self._local_videos * self._options.clips
        return {
            **{
                name: np.concatenate([array] * self._local_videos)
                for name, array in black(self._options).items()
            },
            "index": np.full(rows, -1, np.int32),
            "label": np.full(rows, -1, np.int32),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: batches consumed, and what defines the order and the clips."""
        names = (*_CLIP_FACTS, *_LATER_FACTS)
        clip_facts = {name: _plain(getattr(self._options, name)) for name in names}
        return {
            "version": 1,
            "batches": self._step,
            "manifest_sha256": self._source.sha256,
            "num_videos": self.num_videos,
            "batch_videos": self.batch_videos,
            "repeats": self._options.repeats,
            "seed": self._order.seed,
            "shuffle": self._order.shuffle,
            "resize": _resize_fact(self._options),
            **clip_facts,
        }

    @staticmethod
    def check_state(saved: dict[str, Any], current: dict[str, Any]) -> int:
        """Returns the step to start from, if `current` continues the order of `saved`.

        Workers and processes may differ; they are not part of a state. Tuples that became lists in
        a file are equal to what they were.

        Raises:
          ValueError: the states belong to different orders or clips; the sentence says where they
            differ.
        """
        later = {f.name: f.default for f in dataclasses.fields(PipelineOptions)}
        saved = {"resize": "host", **{name: later[name] for name in _LATER_FACTS}, **saved}
        facts = [key for key in current if key != "batches"]
        differing = [key for key in facts if _plain(saved.get(key)) != _plain(current[key])]
        if differing:
            listed = "; ".join(
                f"{key} was {saved.get(key)!r} and is {current[key]!r}" for key in differing
            )
            advice = "Restore what was changed"
            if "manifest_sha256" in differing:
                advice += " (a file that cannot be read stays on the list: put an empty one in its "
                advice += 'place, and on_error="skip" replaces it)'
            raise ValueError(
                f"The data position cannot be restored: {listed}. {advice}, or begin a new run "
                "from these weights (init_from)."
            )
        return int(saved["batches"])

    def close(self) -> None:
        """Ends workers and threads and removes temporary files; safe to call again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._folder is not None:
                self._stop(self._folder)

    def __del__(self):
        if not self._closed:  # else there may be no lock either
            self.close()

    def _next_batch(self) -> HostBatch:
        """The next batch; whole or not at all, so that new workers can begin with it."""
        while True:
            try:
                return self._assemble(self._start())
            except WorkerError as error:
                most = self._options.max_worker_restarts
                if self._num_restarts == most:
                    raise
                self._num_restarts += 1
                _log.warning(
                    "%s The workers start anew at the same batch, restart %d of %d.",
                    error,
                    self._num_restarts,
                    most,
                )
                with self._lock:
                    if not self._closed:
                        self._stop(self._folder)

    def _start(self) -> _Fetcher | Iterator[dict[str, np.ndarray]]:
        """Starts reading on first use, so that making a pipeline to look at it costs nothing."""
        with self._lock:
            if self._closed:
                raise PipelineError(CLOSED)
            if self._iterator is not None:
                return self._fetcher or self._iterator
            self._folder = Path(tempfile.mkdtemp(prefix="vmae_data_"))
            self._num_messages = 0  # of these workers
            process_index, process_count = self._process
            load = LoadClips(
                self._source,
                self._order,
                self._options,
                process_index=process_index,
                process_count=process_count,
                start_step=self._step,
                folder=self._folder,
            )
            if not self._options.workers:
                guards.enter(self._folder, 0, clip_timeout_s=self._options.clip_timeout_s)
            steps_left = self.steps_per_epoch - self._step
            videos = steps_left * self._local_videos if self._once else _ENDLESS
            self._iterator = _make_iterator(load, self._options, self._chunk, videos)
            if self._options.workers:
                self._fetcher = _Fetcher(self._iterator)
            return self._fetcher or self._iterator

    def _stop(self, folder: Path) -> None:
        guards.ask_to_stop(folder)
        try:
            if self._fetcher is not None:
                self._fetcher.close()
                if self._fetcher.is_alive():  # a worker does not answer; nothing else will end it
                    _kill_workers(folder)
            if self._iterator is not None:
                self._iterator.close()
        finally:
            self._iterator = self._fetcher = None
            if self._options.workers:
                # grain holds prepared batches in reference cycles and unlinks their shared memory
                # from a thread; without this, repeated pipelines fill /dev/shm until the collector
                # runs.
                gc.collect()
                time.sleep(0.2)
                _kill_workers(folder)  # grain forgets those that it is starting when it is closed
            guards.leave(folder)
            guards.remove(folder)

    def _assemble(self, source: _Fetcher | Iterator[dict[str, np.ndarray]]) -> HostBatch:
        chunks = self._local_videos // self._chunk
        arrays: dict[str, np.ndarray] = {}
        for i in range(chunks):
            # Copied even if it is one: memory shared with a worker must not outlive the pipeline.
            for key, part in self._next_chunk(source).items():
                if not i:
                    arrays[key] = np.empty((self._local_videos, *part.shape[1:]), part.dtype)
                arrays[key][i * self._chunk : (i + 1) * self._chunk] = part
        merged = {
            key: arrays[key].reshape(-1, *arrays[key].shape[2:])
            for key in _BATCH_ARRAYS
            if key in arrays
        }
        return HostBatch(
            arrays=merged,
            records=arrays["record"],
            failures=self._failures(arrays["failed_record"], arrays["failed_reason"]),
            decode_s=arrays["decode_s"],
            stage_s=arrays["stage_s"],
            worker=arrays["worker"],
            restarts=self._num_restarts,
            _source=self._source,
        )

    def _next_chunk(
        self, source: _Fetcher | Iterator[dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The next message; the time that it may take counts from here."""
        if not isinstance(source, _Fetcher):
            return next(source)
        limit_s = self._options.stall_timeout_s
        if self._num_messages < self._options.workers:  # they come from the workers in turn
            limit_s += _START_S
        try:
            message = source.get(limit_s)
        except queue.Empty:
            raise PipelineError(
                f"No batch came for {limit_s:g} s. {_whereabouts(self._folder)} "
                "Check the storage, or raise stall_timeout_s."
            ) from None
        except UserError:  # has its say already
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                words, remedy = _exit_words(str(error))
                what = f"A data worker died ({words})."
            else:
                what, remedy = f"A data worker failed ({type(error).__name__}: {error}).", ""
                _log.error("In a data worker:", exc_info=error)
            raise WorkerError(f"{what} {_whereabouts(self._folder)}{remedy}") from error
        self._num_messages += 1
        return message

    def _failures(self, records: np.ndarray, reasons: np.ndarray) -> list[Failure]:
        failures = []
        for place in np.argwhere(records >= 0):
            record = int(records[tuple(place)])
            reason = reasons[tuple(place)].tobytes().rstrip(b"\0").decode(errors="replace")
            failures.append(Failure(record, self._source.name(record), reason))
        return failures

    def _account(self, batch: HostBatch) -> None:
        """Counts and logs replaced videos; stops the run when there are too many."""
        for failure in batch.failures:
            self._num_failures += 1
            if self._num_failures <= _LOGGED_FAILURES:
                what = "Left out" if self._once else "Replaced"
                _log.warning("%s a video: %s: %s", what, failure.path, failure.reason)
            if self._num_failures == _LOGGED_FAILURES:
                _log.warning("Further bad videos are counted but not logged.")
        used, left_out = int((batch.records >= 0).sum()), len(batch.failures) * self._once
        self._videos_seen += used + left_out
        rate = self._num_failures / max(self._videos_seen, 1)
        enough = self._num_failures >= self._options.min_errors
        if batch.failures and enough and rate > self._options.max_error_rate:
            self.close()
            last = batch.failures[-1]
            raise PipelineError(
                f"{self._num_failures} of {self._videos_seen} videos could not be used "
                f"({rate:.1%}, the limit is {self._options.max_error_rate:.1%}); the last was "
                f"{last.path}: {last.reason}. Run vmae_jax.tools.check_data on the manifest, or "
                "raise max_error_rate."
            )


class _Fetcher:
    """Pulls from the workers in a thread, so that waiting for them can have an end."""

    def __init__(self, iterator: Iterator[Any]):
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(iterator,), daemon=True, name="data-fetcher"
        )
        self._thread.start()

    def get(self, timeout_s: float) -> Any:
        """Waits for what comes next; raises `queue.Empty`, or what the workers raised."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._closing.is_set():  # by another thread
                raise PipelineError(CLOSED)
            left_s = deadline - time.monotonic()
            try:
                item = self._ready.get(timeout=min(max(left_s, 0.0), 0.2))
            except queue.Empty:
                if left_s <= 0:
                    raise
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def close(self) -> None:
        """Ends the thread, if the workers answer within a few seconds."""
        self._closing.set()
        deadline = time.monotonic() + _ANSWER_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(0.05)

    def is_alive(self) -> bool:
        """Whether the thread is still waiting for a worker."""
        return self._thread.is_alive()

    def _run(self, iterator: Iterator[Any]) -> None:
        while not self._closing.is_set():
            try:
                item = next(iterator)
            except Exception as error:  # handed on whole; the reader decides
                item = error
            self._ready.put(item)
            if isinstance(item, Exception):
                return


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _resize_fact(options: PipelineOptions) -> list[Any] | str:
    """What of `resize` and `canvas` shows in the pixels."""
    return ["device", *options.canvas] if options.resize == "device" else "host"


def _chunk_videos(options: PipelineOptions, local_videos: int) -> int:
    """Videos in one message from a worker; the batch is put together from several."""
    if options.worker_videos:
        if local_videos % options.worker_videos:
            raise ValueError(
                f"worker_videos={options.worker_videos} does not divide the {local_videos} videos "
                "of a batch that this process reads."
            )
        return options.worker_videos
    pixels = options.windows * options.frames * math.prod(options.canvas)
    if options.resize == "host":
        pixels = options.clips * options.frames * math.prod(options.size)
    most = max(1, _CHUNK_BYTES // (pixels * options.channels))
    return max(d for d in range(1, local_videos + 1) if local_videos % d == 0 and d <= most)


def _make_iterator(
    load: LoadClips, options: PipelineOptions, chunk: int, videos: int
) -> Iterator[dict[str, np.ndarray]]:
    import grain  # heavy, and not needed for the rest of the package
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts workers
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # one decoding thread a worker
    dataset = grain.MapDataset.range(videos).map(load).batch(chunk).to_iter_dataset(read)
    if options.workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=options.workers, per_worker_buffer_size=options.worker_buffer
            ),
            worker_init_fn=functools.partial(
                _enter_worker, load.folder, options.clip_timeout_s, os.getpid()
            ),
        )
    return iter(dataset)


def _enter_worker(folder: Path, timeout_s: float, parent: int, worker: int, _workers: int) -> None:
    # Signals go to the whole process group; only the main process answers them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()  # a crash in a decoder says where it was, on stderr
    _keep_freed_memory()
    if guards.enter(folder, worker, clip_timeout_s=timeout_s, parent=parent) is None:
        sys.exit(1)  # the pipeline was closed while this process started


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: the system clears each page that it gives out anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it accepts
        set_option(_M_TRIM_THRESHOLD, 1 << 30)


def _whereabouts(folder: Path) -> str:
    """Says what each worker is at: the dead first, then those that are at it longest."""
    alive = {child.pid for child in multiprocessing.active_children()}
    notices = guards.read_notices(folder)
    lines = []
    for notice in sorted(notices, key=lambda n: (n.pid in alive, -(n.seconds or 0.0))):
        state = "alive" if notice.pid in alive else "dead"
        doing = "between videos"
        if notice.seconds is not None:
            doing = f"decoding {notice.path}, begun {notice.seconds:.0f} s ago"
        lines.append(f"Worker {notice.worker} ({state}): {doing}.")
    return " ".join(lines[:8]) or "No worker had started yet."


def _exit_words(message: str) -> tuple[str, str]:
    """What the exit code in grain's message means, and what can be done about it."""
    found = re.search(r"exit code (-?\d+)", message)
    code = int(found[1]) if found else 0
    if code == guards.EXIT_STUCK:
        return "its decoder did not come back in time", f" {guards.REMEDY}"
    if code == -signal.SIGKILL:
        return "killed; most often for want of memory", ""
    if code == -signal.SIGBUS:
        return "bus error; most often /dev/shm is too small", ""
    if code in (-signal.SIGSEGV, -signal.SIGABRT):
        return f"signal {-code}; most often a crash in the decoder", f" {guards.REMEDY}"
    return f"signal {-code}" if code < 0 else f"exit code {code}", ""


def _kill_workers(folder: Path) -> None:
    """Kills the workers of a pipeline that still run."""
    pids = {notice.pid for notice in guards.read_notices(folder)}
    for child in multiprocessing.active_children():
        if child.pid in pids:
            child.kill()
            child.join(_ANSWER_S)


def _close_if_alive(ref: weakref.ref[ClipPipeline]) -> None:
    pipeline = ref()
    if pipeline is not None:
        pipeline.close()
