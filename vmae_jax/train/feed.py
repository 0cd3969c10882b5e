"""From the host's batches to arrays on the mesh, copied while the step before is still running."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from vmae_jax.train import agreement

_POLL_S = 0.01


class Delivery(NamedTuple):
    """One batch.

    Attributes:
      arrays: global arrays on the mesh, "notes" of all processes among them.
      host: the pipeline's batch with its records and failures, arrays removed.
      wait_s: seconds for which the devices had nothing to do because it was not there yet.
    """

    arrays: dict[str, jax.Array]
    host: Any
    wait_s: float


class DeviceFeed:
    """Pulls batches in a thread and keeps `depth` of them on the devices ahead of the loop.

    How long a batch may take is the pipeline's business, which knows what it is waiting for.
    """

    def __init__(self, pipeline: Iterator[Any], sharding: NamedSharding, *, depth: int = 2) -> None:
        """Starts to pull at once.

        Args:
          pipeline: iterator of host batches: a dict `arrays` of this process's rows, `names()` of
            its videos, and `failures`.
          sharding: layout of the leading axis of the global arrays.
          depth: batches held ready.
        """
        self._pipeline = pipeline
        self._sharding = sharding
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="device-feed", daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        try:
            for host in self._pipeline:
                names = host.names()
                clips = agreement.clips_sum(names, first=jax.process_index() * len(names))
                arrays = {
                    name: jax.make_array_from_process_local_data(self._sharding, array)
                    for name, array in host.arrays.items()
                }
                arrays["notes"] = agreement.rows(self._sharding.mesh, (len(host.failures), clips))
                host.arrays = {}
                self._put((arrays, host))
                if self._stop.is_set():
                    return
            self._put(StopIteration())
        except Exception as error:  # delivered to the loop, which raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
        return None

    def next(
        self,
        *,
        busy: Callable[[], bool] = lambda: False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Delivery | None:
        """The next batch, or None as soon as `stop` says so.

        Args:
          busy: whether the devices still have work; time in which they do is not counted as
            waiting.
          stop: asked while there is no batch.

        Raises:
          whatever the pipeline raised; `StopIteration` at its end.
        """
        idle_since = None
        while not stop():
            if idle_since is None and not busy():
                idle_since = time.perf_counter()
            try:
                item = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            wait_s = 0.0 if idle_since is None else time.perf_counter() - idle_since
            return Delivery(*item, wait_s=wait_s)
        return None

    def close(self) -> None:
        """Stops the thread; the pipeline itself is closed by its owner."""
        self._stop.set()
        self._thread.join(timeout=10)
