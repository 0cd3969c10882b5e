"""The processes of one run: how they find each other, and what they agree on outside a step.

JAX's own cluster detection and coordination service do the work. Here is when to ask for it, what a
user is told if it does not come about, and the few facts that processes exchange on the host.
"""

import contextlib
import importlib.util
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax._src.distributed import global_state  # the number below has no public name
from jax.experimental import multihost_utils

from vmae_jax.errors import UserError

_log = logging.getLogger(__name__)

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
HEARTBEAT_S = 100  # a process that gives no sign of life for so long ends the whole run
START_S = 300  # for all processes to have started
EXIT_BROKEN = 70  # after an error that nobody foresaw, as in sysexits.h
LEAVE_S = 60  # that a process which is done, or failed, waits for the others

_WHEELS = {
    "gpu": "install its wheels (make install ACCEL=cuda, or cuda12) and see that nvidia-smi works",
    "tpu": "install its wheels (make install ACCEL=tpu) and see that no other process holds it",
    "cpu": "unset JAX_PLATFORMS",
}
_EXPLICIT = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


class DistributedError(UserError, RuntimeError):
    """Processes or devices are not what was asked for; says what was found and what to do."""


@dataclass(frozen=True)
class Processes:
    """Where this process stands in a run, as given on the command line.

    Attributes:
      coordinator: host:port of process 0, or "" to go by the environment.
      count: processes in all.
      index: number of this one, from 0.
    """

    coordinator: str = ""
    count: int = 0
    index: int = -1

    def __post_init__(self):
        given = [bool(self.coordinator), self.count > 0, self.index >= 0]
        if any(given) and not all(given):
            raise DistributedError(
                f"of {_EXPLICIT} some are missing; give all three, or none where TPU, SLURM or "
                "Open MPI say it themselves"
            )
        address = re.fullmatch(r".+:\d+", self.coordinator)
        if all(given) and (self.index >= self.count or not address):
            raise DistributedError(
                f"--coordinator={self.coordinator} --num_processes={self.count} "
                f"--process_id={self.index}: the coordinator is host:port of process 0, and ids "
                "run from 0 to one less than the number of processes"
            )


@contextlib.contextmanager
def joined(
    given: Processes, *, platform: str = "auto", heartbeat_s: int = HEARTBEAT_S
) -> Iterator[None]:
    """Joins the other processes of the run, if there are any, and leaves them at the end.

    Enter it before anything touches a device.

    Args:
      given: from the command line.
      platform: one of `PLATFORMS`; anything but `auto` must be what JAX finds.
      heartbeat_s: a process that is silent for so long is taken for dead, and the others end too.

    Raises:
      DistributedError: the processes do not find each other, or there is another platform.
    """
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    # Its handler would swallow a SIGTERM that comes before the loop installs ours.
    jax.config.update("jax_enable_preemption_service", False)
    limits = {
        "initialization_timeout": START_S,
        "heartbeat_timeout_seconds": heartbeat_s,
        "shutdown_timeout_seconds": LEAVE_S,
    }
    _join(given, platform, limits)
    if not jax.distributed.is_initialized():
        check_platform(platform)
        yield
        return
    try:
        check_platform(platform)
        yield
    except (SystemExit, UserError):
        raise
    except BaseException:
        # Something broke, most often because another process died. To wait for the others, as JAX
        # does at exit, would keep them, and the job, from ending.
        _log.exception("Process %d of %d ends.", jax.process_index(), jax.process_count())
        logging.shutdown()
        os._exit(EXIT_BROKEN)
    # Here and not at exit: until all have left, no process may take the coordinator away.
    finally:
        jax.distributed.shutdown()


def _join(given: Processes, platform: str, limits: Mapping[str, int]) -> None:
    if given.count > 1:
        _announce_wait(f"process {given.index} of {given.count}", given.coordinator)
        # Without "deactivate" SLURM's detection would narrow each process down to one GPU.
        with _in_words(given.coordinator):
            if given.index == 0:
                _check_port(int(given.coordinator.rsplit(":", 1)[1]))
            jax.distributed.initialize(
                given.coordinator,
                given.count,
                given.index,
                cluster_detection_method="deactivate",
                **limits,
            )
        return
    announced = announced_processes(os.environ)
    if given.count == 1 or announced == 1:
        return
    if announced is None and (platform in ("cpu", "gpu") or not _may_be_a_tpu_host()):
        return
    _announce_wait("one process of several", "the coordinator that the environment names")
    with _in_words("the environment's coordinator"):
        try:
            jax.distributed.initialize(local_device_ids=_whole_node(os.environ), **limits)
        except ValueError as error:  # JAX sees no cluster
            if announced is not None:
                raise DistributedError(
                    f"the environment announces {announced} processes, but JAX cannot tell from "
                    f"it which one this is ({error}); give {_EXPLICIT}"
                ) from error


def announced_processes(environ: Mapping[str, str]) -> int | None:
    """Number of processes that a launcher's variables speak of; None where there are none.

    Source: the variables that JAX's detection reads (SLURM, Open MPI, Cloud TPU on GKE).
    """
    slurm = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    if all(f"SLURM_{name}" in environ for name in slurm):
        return int(environ["SLURM_NTASKS"])
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return int(environ["OMPI_COMM_WORLD_SIZE"])
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return len(hosts.split(",")) * int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    return None


def _may_be_a_tpu_host() -> bool:
    """Whether to let JAX look for chips and, outside GKE, ask the machine's metadata for its peers.

    Importing JAX sets TPU_SKIP_MDS_QUERY where there are no chips.
    """
    has_library = importlib.util.find_spec("libtpu") is not None
    return has_library and "TPU_SKIP_MDS_QUERY" not in os.environ


def _whole_node(environ: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a node on which SLURM runs a single task; else None, which is JAX's choice.

    JAX takes the number of a task on its node for its one GPU, so that a task alone would leave all
    but the first idle.
    """
    gpus = int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    alone = re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return list(range(gpus)) if alone and gpus else None


def _announce_wait(who: str, coordinator: str) -> None:
    # JAX aborts the process when the wait is over; what can be said is said before.
    _log.info(
        "Joining as %s through %s; this ends in an abort if not all are there within %d s.",
        *(who, coordinator, START_S),
    )


def _check_port(port: int) -> None:
    """Raises OSError if another process, such as a run not yet gone, listens there: JAX crashes."""
    socket.create_server(("", port)).close()


@contextlib.contextmanager
def _in_words(coordinator: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # a port in use, a name or metadata not found
        if isinstance(error, UserError):
            raise
        raise DistributedError(
            f"the processes of the run cannot meet at {coordinator}: {error}. Check the address, "
            f"that its port is free on process 0, or give {_EXPLICIT}"
        ) from error


def check_platform(wanted: str) -> None:
    """Raises `DistributedError` if JAX computes elsewhere than on `wanted`; JAX falls back quietly.

    Args:
      wanted: one of `PLATFORMS`.
    """
    forced = os.environ.get("JAX_PLATFORMS", "")
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise DistributedError(
            f"JAX has no device to compute on (JAX_PLATFORMS={forced!r}): {error}"
        ) from error
    if wanted not in ("auto", found):
        because = f" (JAX_PLATFORMS={forced})" if forced else ""
        raise DistributedError(
            f"--platform={wanted}, but JAX found only {jax.device_count()} device(s) of platform "
            f"{found}{because}: {_WHEELS[wanted]}; or give --platform={found}"
        )


def coordination_id() -> int:
    """Number of this process in the coordination service, whose barriers orbax waits at.

    On TPUs `jax.process_index` follows the topology and may be another one.
    """
    return global_state.process_id


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds on every process; all must ask at the same point."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.bool_(ok))))


def from_first(numbers: Sequence[int]) -> list[int]:
    """Process 0's `numbers`, on every process; all must ask at the same point."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    own = np.zeros(count, np.int32)
    own[: len(numbers)] = numbers[:count]
    return multihost_utils.broadcast_one_to_all(own).tolist()


def gathered_texts(text: str) -> list[str]:
    """The `text` of every process, in their order, on every process; all must ask at the same
    point."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.pad(data, (0, int(lengths.max()) - len(data)))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths, strict=True)]
