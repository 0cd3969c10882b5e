"""Kills a small run of several processes again and again; its end must be the unbroken run's.

    python benchmarks/soak.py --kills=200 --processes=2 --folder=runs/soak

Each cycle starts the same command, waits for a phase drawn at random (start-up, restore, steps, a
save being written) and a random time in it, and kills one process or all of them with SIGKILL.
Where one is left it has to end by itself. After the last kill the run goes on to its end:
parameters, optimizer state, counters and every logged loss must equal those of the unbroken run,
bit for bit.

The commands are those of `vmae_jax.main`, forked from a process that has imported everything and
touched no device; the network is a single matrix, laid out over all processes; compiled programs
are cached. So a cycle costs little more than to join, to restore and to save.
"""

import argparse
import collections
import functools
import json
import math
import multiprocessing
import os
import pathlib
import random
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PHASES = ("start-up", "restore", "steps", "save")
START_UP, RESTORE, STEPS, SAVE = range(4)
# How long after a phase has begun a process is killed, at most.
LONGEST_S = {START_UP: 1.5, RESTORE: 0.4, STEPS: 0.5, SAVE: 0.3}
CHECKPOINT_EVERY = 3
MODEL = (
    f"--config={ROOT / 'configs' / 'demo.py'}:smoke",
    "--config.data.size=(16,16)",
    "--config.data.frames=4",
    "--config.data.workers=0",
    "--config.mesh.fsdp=64",
    "--config.train.batch_videos=4",
    "--config.train.log_every=1",
    "--config.train.picture_every=0",
)


class SoakError(Exception):
    """Something did not go as a run promises."""


def matrix_system(config: Any, *_: Any, **__: Any) -> Any:
    """One matrix that maps clips to noise: it depends on data, keys and everything before it."""
    import jax
    import jax.numpy as jnp

    from vmae_jax.ops.losses import Ratio
    from vmae_jax.systems.base import ArraySpec, System

    shape = (config.data.frames, *config.data.size, config.model.channels)
    width = 8

    def loss(params: Any, batch: Any, keys: Any, train: bool) -> Any:
        clips = batch["video"].reshape(len(batch["video"]), -1) / 255.0
        noise = jax.vmap(lambda key: jax.random.normal(key, (width,)))(keys)
        error = jnp.square(clips @ params["head"]["kernel"] - noise)
        return Ratio(error.sum(), jnp.float32(error.size)), {}

    return System(
        name="matrix",
        init=lambda key: {"head": {"kernel": jax.random.normal(key, (math.prod(shape), width))}},
        targets=lambda frozen, batch, keys: batch,
        loss=loss,
        batch_spec={"video": ArraySpec(shape, "uint8"), "index": ArraySpec((), "int32")},
        compute_dtype="float32",
        macs={"all": math.prod(shape) * width},
        train_flops=6.0 * math.prod(shape) * width,
    )


def process_main(argv: Sequence[str], log: str, phase: Any, index: int) -> None:
    """Runs `vmae_jax.main` in a forked process, and notes in `phase[index]` where it is."""
    with pathlib.Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from vmae_jax import main, systems
    from vmae_jax.train import checkpoints, loop

    def noted(function: Any, number: int) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            phase[index] = number
            return function(*args, **kwargs)

        return call

    checkpoints.Checkpoints.restore_latest = noted(checkpoints.Checkpoints.restore_latest, RESTORE)
    loop.Trainer._loop = noted(loop.Trainer._loop, STEPS)
    systems.build = matrix_system
    sys.argv = list(argv)
    main.main()


class Job:
    """The run in one workdir: starts its processes, says in which phase they are."""

    def __init__(self, workdir: pathlib.Path, flags: Sequence[str], *, processes: int):
        self.workdir, self._flags, self._count = workdir, flags, processes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["vmae_jax.main", "grain", "tensorboardX"])
        self.processes: list[Any] = []

    def start(self) -> None:
        """Starts all processes."""
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        self._phase = self._context.RawArray("b", self._count)
        self._began = time.time()
        self.processes = []
        for index in range(self._count):
            where = (f"--coordinator=localhost:{port}", f"--num_processes={self._count}")
            argv = ["main", *MODEL, *self._flags, f"--workdir={self.workdir}"]
            argv += [*where, f"--process_id={index}"] if self._count > 1 else []
            log = f"{self.workdir}.log.{index}"
            process = self._context.Process(
                target=process_main, args=(argv, log, self._phase, index)
            )
            process.start()
            self.processes.append(process)

    def phase(self, index: int) -> int:
        """Where a process is; a save counts as long as its folder is not complete."""
        phase = self._phase[index]
        if phase != STEPS:
            return phase
        for partial in (self.workdir / "checkpoints").glob("*tmp*"):
            try:
                if partial.stat().st_mtime > self._began:
                    return SAVE
            except FileNotFoundError:  # just now it became complete
                continue
        return STEPS

    def wait_for(self, index: int, phase: int) -> bool:
        """Waits until a process is in a phase; False if one has ended before."""
        while all(process.is_alive() for process in self.processes):
            if self.phase(index) == phase:
                return True
            time.sleep(0.002)
        return False

    def finish(self, *, within_s: float) -> list[int]:
        """Waits until all have ended by themselves.

        Raises:
          SoakError: one has not after that time.
        """
        deadline = time.monotonic() + within_s
        for index, process in enumerate(self.processes):
            process.join(max(deadline - time.monotonic(), 0.01))
            if process.is_alive():
                for other in self.processes:
                    other.kill()
                raise SoakError(f"process {index} did not end within {within_s:g} s")
        return [process.exitcode for process in self.processes]


def newest_step(workdir: pathlib.Path) -> int:
    """Newest complete checkpoint, or 0."""
    steps = (path.name for path in (workdir / "checkpoints").glob("*"))
    return max((int(name) for name in steps if name.isdigit()), default=0)


def kill_once(job: Job, rng: random.Random, *, heartbeat_s: int) -> tuple[int, int]:
    """One cycle: starts the job, kills at a random moment, waits until nothing is left of it.

    Returns:
      phase in which the kill came, and number of processes killed.

    Raises:
      SoakError: the run ended by itself, or what was left did not end.
    """
    job.start()
    victim = rng.randrange(len(job.processes))
    wanted = rng.choices(range(4), weights=(1, 2, 3, 4))[0]
    more = rng.randrange(2) if wanted in (STEPS, SAVE) else 0  # checkpoints before that
    goal = newest_step(job.workdir) + more * CHECKPOINT_EVERY
    while newest_step(job.workdir) < goal and job.wait_for(victim, SAVE):
        time.sleep(0.01)
    if not job.wait_for(victim, wanted):
        codes = job.finish(within_s=60)
        raise SoakError(f"the run ended before it was killed, with {codes}; more --steps?")
    time.sleep(rng.uniform(0.0, LONGEST_S[wanted]))
    phase = job.phase(victim)
    # Before it has joined, the others would wait for it, by design for minutes.
    alone = rng.random() < 0.5 and phase != START_UP
    victims = [job.processes[victim]] if alone else job.processes
    for process in victims:
        process.kill()
    job.finish(within_s=4 * heartbeat_s + 60)
    return phase, len(victims)


def largest_difference(a: pathlib.Path, b: pathlib.Path, step: int) -> float:
    """Largest difference between all numbers of two checkpoints."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def load(workdir: pathlib.Path) -> Any:
        folder = workdir / "checkpoints" / str(step)
        saved = ocp.checkpointables_metadata(folder).metadata
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            {part: saved[part] for part in ("params", "progress")},
        )
        return ocp.load_checkpointables(folder, wanted)

    def difference(x: Any, y: Any) -> float:
        return float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))

    return max(jax.tree.leaves(jax.tree.map(difference, load(a), load(b))))


def check_rows(a: pathlib.Path, b: pathlib.Path, steps: int) -> None:
    """Raises `SoakError` unless both logs have every step once, with the same clips and losses."""
    logs = []
    for workdir in (a, b):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
        if [row["step"] for row in logs[-1]] != list(range(1, steps + 1)):
            raise SoakError(f"{workdir}: steps are missing from metrics.jsonl, or there twice")
    for name in ("loss", "grad_norm", "clips_crc32"):
        differing = [x["step"] for x, y in zip(*logs, strict=True) if x[name] != y[name]]
        if differing:
            raise SoakError(f"{name} differs, first at step {differing[0]}")


def soak(folder: pathlib.Path, *, kills: int, processes: int, steps: int, seed: int) -> dict:
    """Runs all of it.

    Args:
      folder: is emptied; gets the videos, both runs and their logs.
      kills: cycles before the run may go on to its end.
      processes: of the run, one device each.
      steps: of the run; more than `kills` cycles come to.
      seed: of the moments.

    Returns:
      figures.

    Raises:
      SoakError: what did not hold.
    """
    from vmae_jax.data.synthetic import generate

    heartbeat_s = 5
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    generate(folder / "videos", num_videos=40)
    flags = [
        f"--config.data.manifest={folder / 'videos' / 'train.csv'}",
        f"--config.train.steps={steps}",
        f"--heartbeat_s={heartbeat_s}",
    ]
    begin = time.monotonic()
    seldom = f"--config.train.checkpoint_every={steps}"
    whole = Job(folder / "unbroken", [*flags, seldom], processes=processes)
    whole.start()
    if any(codes := whole.finish(within_s=3600)):
        raise SoakError(f"the unbroken run ended with {codes}; see {folder}/unbroken.log.*")
    unbroken_s = time.monotonic() - begin

    begin = time.monotonic()
    rng = random.Random(seed)
    often = f"--config.train.checkpoint_every={CHECKPOINT_EVERY}"
    job = Job(folder / "killed", [*flags, often], processes=processes)
    counts: collections.Counter[str] = collections.Counter()
    alone = 0
    for number in range(1, kills + 1):
        phase, victims = kill_once(job, rng, heartbeat_s=heartbeat_s)
        counts[PHASES[phase]] += 1
        alone += victims == 1 and processes > 1
        print(
            f"kill {number}: {victims} of {processes} in {PHASES[phase]}, newest checkpoint "
            f"{newest_step(job.workdir)}, {time.monotonic() - begin:.0f} s",
            flush=True,
        )
    at_the_last_kill = newest_step(job.workdir)
    job.start()
    if any(codes := job.finish(within_s=3600)):
        raise SoakError(f"after the last kill the run ended with {codes}")
    check_rows(whole.workdir, job.workdir, steps)
    return {
        "kills": kills,
        "processes": processes,
        "steps": steps,
        "by_phase": {name: counts[name] for name in PHASES},
        "one_process_only": alone,
        "step_at_the_last_kill": at_the_last_kill,
        "unreadable": len(list((job.workdir / "checkpoints").glob("*.unreadable"))),
        "unbroken_s": round(unbroken_s),
        "killed_s": round(time.monotonic() - begin),
        "largest_difference": largest_difference(whole.workdir, job.workdir, steps),
    }


def main() -> None:
    """Runs the command line; exit code 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="default: 6 for each kill")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps = args.steps or 6 * args.kills
    try:
        figures = soak(
            args.folder.resolve(),
            kills=args.kills,
            processes=args.processes,
            steps=steps,
            seed=args.seed,
        )
    except SoakError as error:
        sys.exit(f"NOT HELD: {error}")
    print(json.dumps(figures))
    if figures["largest_difference"]:
        sys.exit("NOT HELD: the parameters differ")


if __name__ == "__main__":
    main()
