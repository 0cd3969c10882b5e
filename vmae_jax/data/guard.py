"""Bounds what a stuck or crashed decoder can do to a run.

Time limits inside `video` cover everything but a call into C that never returns, or a read from a
dead file system. For these each worker keeps a *notice*, a small file mapped into memory that says
which clip it is at and since when, and a thread that ends the process when a clip takes too long or
when the main process is gone. The main process reads the notices to name the clip.

The notices of a pipeline lie in its *folder*, which lives as long as the pipeline is open.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXIT_STUCK = 75
_LAYOUT = struct.Struct("<qdi")  # process id, start of the clip (0: idle), bytes in the path
_SIZE = 4096
_POLL_S = 0.25
_SLACK_S = 5.0  # the limit inside `video` speaks first; the guard is for what it cannot see

# Taking a file off the list would change the order of the run, and a resume would be refused.
REMEDY = (
    'Put an empty file in its place: with on_error="skip" it is then replaced and counted, and the '
    "run goes on from its last checkpoint with the same list."
)


@dataclass(frozen=True)
class Notice:
    """What a worker is at. `seconds` is None while it is between clips."""

    worker: int
    pid: int
    path: str
    seconds: float | None


class Guard:
    """Belongs to one decoding process: its notice and its watching thread.

    Attributes:
      worker: its number.
    """

    def __init__(self, folder: Path, worker: int, *, clip_limit_s: float, parent: int | None):
        """
        Args:
          folder: shared by all workers of a pipeline.
          worker: number of this worker.
          clip_limit_s: end this process when one clip takes longer.
          parent: end this process when it has another parent than this; None: do not look.
        """
        path = folder / f"worker-{worker}"
        path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._stop_path = folder / "stop"
        self._limit_s, self._parent = clip_limit_s, parent
        self._began, self._clip = 0.0, ""
        self._closed = threading.Event()
        self.worker = worker
        self._write()
        threading.Thread(target=self._watch, daemon=True, name="clip-guard").start()

    @contextlib.contextmanager
    def clip(self, path: str) -> Iterator[None]:
        """Marks the time during which this process works on a clip."""
        self._clip, self._began = path, time.monotonic()
        self._write()
        try:
            yield
        finally:
            self._began = 0.0
            self._write()

    def stopped(self) -> bool:
        """Whether the pipeline has asked its workers to stop."""
        return self._closed.is_set() or self._stop_path.exists()

    def close(self) -> None:
        """Ends the watching thread; nothing bounds a clip from here on."""
        self._closed.set()

    def _write(self) -> None:
        path = self._clip.encode()[: _SIZE - _LAYOUT.size]
        packed = _LAYOUT.pack(os.getpid(), self._began, len(path)) + path
        self._map[: len(packed)] = packed

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            if self._parent is not None and os.getppid() != self._parent:
                remove(self._stop_path.parent)
                os._exit(0)  # orphaned: nobody is left to read what this process makes
            began = self._began
            if began and time.monotonic() - began > self._limit_s:
                # For a worker the main process says the rest; without one this is the last word.
                remedy = "" if self._parent is not None else f" {REMEDY}"
                print(
                    f"The decoder is stuck in {self._clip} (more than {self._limit_s:g} s); "
                    f"this process ends.{remedy}",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback()
                os._exit(EXIT_STUCK)


def read_notices(folder: Path) -> list[Notice]:
    """Reads what all workers of a pipeline are at, dead ones included."""
    notices = []
    for path in sorted(folder.glob("worker-*")):
        raw = path.read_bytes()
        if len(raw) < _LAYOUT.size:
            continue
        pid, began, length = _LAYOUT.unpack_from(raw)
        name = raw[_LAYOUT.size : _LAYOUT.size + length].decode(errors="replace")
        seconds = time.monotonic() - began if began else None
        notices.append(Notice(int(path.name.removeprefix("worker-")), pid, name, seconds))
    return notices


def ask_to_stop(folder: Path) -> None:
    """Asks all workers of a pipeline to make no further clips, and those still starting to end."""
    with contextlib.suppress(FileNotFoundError):  # old temporary files may have been cleared away
        (folder / "stop").touch()


def remove(folder: Path) -> None:
    """Removes the folder of a pipeline, so that no worker can enter it any more."""
    # Renamed first: a worker that enters while files are removed finds "stop", or no folder.
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.closed")), ignore_errors=True)


_guards: dict[Path, Guard] = {}  # by pipeline folder; those of this process


def enter(
    folder: Path, worker: int, *, clip_timeout_s: float, parent: int | None = None
) -> Guard | None:
    """Makes this process a worker of the pipeline that owns the folder.

    Args:
      folder: of the pipeline.
      worker: number of this worker.
      clip_timeout_s: time for one clip; a few seconds later the process ends.
      parent: end this process when it has another parent than this; None: do not look.

    Returns:
      The guard of this process; None if the pipeline was closed before.
    """
    try:
        guard = Guard(folder, worker, clip_limit_s=clip_timeout_s + _SLACK_S, parent=parent)
    except FileNotFoundError:
        return None
    if guard.stopped() or not folder.exists():
        guard.close()
        return None
    _guards[folder] = guard
    return guard


def of(folder: Path) -> Guard | None:
    """The guard of this process in the pipeline that owns the folder; None once it has left."""
    return _guards.get(folder)


def leave(folder: Path) -> None:
    """Ends this process's part in a pipeline; nothing happens if it has none."""
    if guard := _guards.pop(folder, None):
        guard.close()
