"""Where the processor time of a video goes: each stage marks itself, whoever wants to know records.

A stage that begins inside another one stops the clock of the outer one until it ends, so the stages
of a video add up to its time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

STAGES = ("read", "index", "decode", "convert", "augment", "crop")

_here = threading.local()  # `clock`: that of the recording of this thread, if there is one


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, float]]:
    """Records the stages that this thread goes through; yields seconds by stage, as they grow."""
    _here.clock = _Clock()
    try:
        yield _here.clock.seconds
    finally:
        del _here.clock


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Marks a part of the work as one of `STAGES`; costs next to nothing where nobody records."""
    clock = getattr(_here, "clock", None)
    if clock is None:
        yield
        return
    outer = clock.switch(name)
    try:
        yield
    finally:
        clock.switch(outer)


class _Clock:
    """Charges the processor time of a thread to the stage that it is in."""

    def __init__(self):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._stage: str | None = None
        self._since = 0.0

    def switch(self, name: str | None) -> str | None:
        """Goes over to another stage, or to none; returns the one left."""
        now, left = time.thread_time(), self._stage
        if left is not None:
            self.seconds[left] += now - self._since
        self._stage, self._since = name, now
        return left
