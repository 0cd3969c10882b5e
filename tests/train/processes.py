"""Starts real runs of several processes on this machine, for the tests of what they do together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from orbax.checkpoint import v1 as ocp

ROOT = pathlib.Path(__file__).parents[2]
# A V2 that compiles in seconds; 8 clips a step, so that 1, 2, 4 or 8 devices can share them.
TINY = (
    f"--config={ROOT / 'configs' / 'demo.py'}:smoke",
    "--config.data.size=(16,16)",
    "--config.data.frames=4",
    "--config.model.encoder.depth=1",
    "--config.model.decoder.depth=1",
    "--config.train.batch_videos=4",
    "--config.train.log_every=1",
    "--config.train.picture_every=0",
    "--config.train.checkpoint_every=2",
    "--config.data.workers=0",
)


@contextlib.contextmanager
def started(
    videos: pathlib.Path,
    workdir: pathlib.Path,
    *flags: str,
    count: int,
    devices: int,
    cache: pathlib.Path,
    prefix: Sequence[str] = (),
) -> Iterator[list[subprocess.Popen]]:
    """Starts a run; kills what is left of it at the end.

    Args:
      videos: set of `vmae_jax.data.synthetic`.
      workdir: folder of the run; each process writes its log to `workdir/../log.<i>`.
      flags: of `vmae_jax.main`.
      count: processes; 1 is started without a coordinator.
      devices: fake devices of each.
      cache: folder of compiled programs, shared by all runs of a test module.
      prefix: words before the command of each process.
    """
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    environ = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    processes = []
    for index in range(count):
        where = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        where += [f"--process_id={index}"]
        with log_path(workdir, index).open("a") as log:
            process = subprocess.Popen(
                [
                    *(*prefix, sys.executable, "-m", "vmae_jax.main"),
                    *(*TINY, f"--config.data.manifest={videos / 'train.csv'}"),
                    *(f"--workdir={workdir}", *(where if count > 1 else ()), *flags),
                ],
                env=environ,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        processes.append(process)
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def run(*args, **options) -> list[int]:
    """Starts a run as `started` does, and returns its exit codes when all processes have ended."""
    with started(*args, **options) as processes:
        return ended(processes, within_s=300)


def ended(processes: Sequence[subprocess.Popen], *, within_s: float) -> list[int]:
    """Exit codes; `subprocess.TimeoutExpired` if one is still there after that time."""
    deadline = time.monotonic() + within_s
    return [process.wait(max(deadline - time.monotonic(), 0.01)) for process in processes]


def wait_until(condition: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> None:
    """Waits while all processes run."""
    deadline = time.monotonic() + 300
    while not condition():
        assert all(process.poll() is None for process in processes), "a process has ended"
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def log_path(workdir: pathlib.Path, index: int) -> pathlib.Path:
    """Where the messages of a process go, of all runs in this workdir."""
    return workdir.parent / f"{workdir.name}.log.{index}"


def log(workdir: pathlib.Path, index: int) -> str:
    """Messages of a process."""
    return log_path(workdir, index).read_text()


def rows(workdir: pathlib.Path) -> list[dict]:
    """What `metrics.jsonl` holds so far, whole lines only."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def params(workdir: pathlib.Path, step: int):
    """Parameters of a checkpoint, on one device."""
    folder = workdir / "checkpoints" / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda saved: jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=here),
        ocp.checkpointables_metadata(folder).metadata["params"],
    )
    return ocp.load_checkpointables(folder, {"params": wanted})["params"]
