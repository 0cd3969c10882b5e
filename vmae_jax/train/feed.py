"""From the host's batches to arrays on the mesh, copied while the step before is still running."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding


class DataStalledError(RuntimeError):
    """No batch came within the time limit."""


class Delivery(NamedTuple):
    """One batch.

    Attributes:
      arrays: global arrays on the mesh.
      host: the pipeline's batch with its records and failures, arrays removed.
      wait_s: seconds that the loop waited for it.
    """

    arrays: dict[str, jax.Array]
    host: Any
    wait_s: float


class DeviceFeed:
    """Pulls batches in a thread and keeps `depth` of them on the devices ahead of the loop."""

    def __init__(
        self, pipeline: Iterator[Any], sharding: NamedSharding, *, timeout_s: float, depth: int = 2
    ) -> None:
        """Starts to pull at once.

        Args:
          pipeline: iterator of host batches with a dict `arrays` of this process's rows.
          sharding: layout of the leading axis of the global arrays.
          timeout_s: a longer wait for one batch raises `DataStalledError`.
          depth: batches held ready.
        """
        self._pipeline = pipeline
        self._sharding = sharding
        self._timeout_s = timeout_s
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="device-feed", daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        try:
            for host in self._pipeline:
                arrays = {
                    name: jax.make_array_from_process_local_data(self._sharding, array)
                    for name, array in host.arrays.items()
                }
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

    def next(self) -> Delivery:
        """The next batch; raises what the pipeline raised, `StopIteration` at its end."""
        begin = time.perf_counter()
        try:
            item = self._ready.get(timeout=self._timeout_s)
        except queue.Empty:
            raise DataStalledError(
                f"no batch came for {self._timeout_s:g} s: a decoder or the storage hangs. The log "
                "above names clips that were slow; raise data.stall_timeout_s if the storage is "
                "merely slow, or check the files with python -m vmae_jax.tools.check_data"
            ) from None
        if isinstance(item, BaseException):
            raise item
        return Delivery(*item, wait_s=time.perf_counter() - begin)

    def close(self) -> None:
        """Stops the thread; the pipeline itself is closed by its owner."""
        self._stop.set()
        self._thread.join(timeout=10)
