"""The training loop: fetch, step, log, draw, save, stop - in that order, for every system."""

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import signal
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmae_jax.errors import UserError
from vmae_jax.systems.base import System
from vmae_jax.train import agreement
from vmae_jax.train import metrics as metrics_lib
from vmae_jax.train.checkpoints import CheckpointError, Checkpoints
from vmae_jax.train.feed import Delivery, DeviceFeed
from vmae_jax.train.frozen import place_frozen
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import TrainState, make_init
from vmae_jax.train.step import StepOptions, lower_step, make_train_step

_log = logging.getLogger(__name__)

_STEPS_IN_FLIGHT = 2
_CLIPS_PICTURED = 4


class NonFiniteError(UserError, RuntimeError):
    """Too many updates in a row were not finite."""


class OtherProcessError(UserError, RuntimeError):
    """Another process of the run could not go on; this one is sound."""


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the step in flight; a second one kills.

    Attributes:
      name: of the signal that came, or "".
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        # Python takes handlers from the main thread alone; elsewhere (a notebook's worker) there
        # is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._previous[number])


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs to know beyond the system and the data.

    Attributes:
      total_steps: updates of the whole schedule.
      clips: in a global batch.
      stop_after: end this process at that step; 0: at `total_steps`.
      schedule: step -> learning rate.
      tx: optimizer without its learning rate.
      options: of the step.
      seed: of parameters, masks and everything drawn on the device.
      fsdp: devices that share one copy of the parameters, at most.
      log_every, checkpoint_every: in steps, at least 1.
      picture_every, eval_every: in steps; 0: never.
      keep_last: number of newest checkpoints kept.
      keep_every: also keep those whose step is a multiple; 0: none.
      max_skipped_in_a_row: non-finite updates before the run stops; looked at when logging.
      peak_tflops: per chip; 0: the datasheet's.
      wandb_project: or "".
      config: resolved config as plain values, saved beside the state.
    """

    total_steps: int
    clips: int
    stop_after: int
    schedule: Callable[[jax.Array], jax.Array]
    tx: optax.GradientTransformation
    options: StepOptions
    seed: int
    fsdp: int
    log_every: int
    picture_every: int
    eval_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int
    max_skipped_in_a_row: int
    peak_tflops: float
    wandb_project: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How `Trainer.fit` ended: step reached, last logged row, what stopped it or ""."""

    step: int
    last_row: Mapping[str, float]
    signal: str


class Trainer:
    """One run of one system in one workdir. `fit` reads top to bottom like the run itself."""

    def __init__(
        self,
        system: System,
        run: Run,
        workdir: str,
        *,
        draw: Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], np.ndarray] | None = None,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> None:
        """Takes the method, its schedule and limits, and the run's folder.

        Args:
          system: the method.
          run: schedule, intervals and limits.
          workdir: folder of the run; exists.
          draw: (params, frozen, batch, key) -> picture, uint8 [H, W, 3], or None.
          evaluate: params -> figures, the same on all processes, which call it together; or None.
        """
        self._system, self._run, self._workdir = system, run, workdir
        self._draw, self._evaluate = draw, evaluate
        self._began, self._evaluating_s = time.perf_counter(), 0.0
        self._mesh = make_mesh(run.fsdp)
        self._no_wishes = agreement.rows(self._mesh, (0, 0))
        self._last_step = min(run.stop_after or run.total_steps, run.total_steps)

    def fit(
        self,
        open_pipeline: Callable[[int], Any],
        check_position: Callable[[dict[str, Any], dict[str, Any]], object],
        init_params: Callable[[Any], Any] | None = None,
        load_frozen: Callable[[Any], Any] | None = None,
    ) -> Outcome:
        """Trains to the last step, resuming from the workdir's newest checkpoint if there is one.

        Args:
          open_pipeline: first step -> iterator of host batches (arrays, `names()`, `failures`)
            with `state()`, `batch_videos` and `close()`.
          check_position: (saved, current) facts of the data order; raises if they disagree.
          init_params: abstract parameters -> weights to start from at step 0.
          load_frozen: abstract frozen parameters -> their weights; None: random ones.

        Raises:
          NonFiniteError, CheckpointError, OtherProcessError and whatever the pipeline raises; the
          steps done before that are saved.
        """
        run = self._run
        with (
            jax.set_mesh(self._mesh),
            StopSignal() as stop,
            contextlib.closing(
                Checkpoints(self._workdir, keep_last=run.keep_last, keep_every=run.keep_every)
            ) as checkpoints,
        ):
            state, position = self._initial_state(checkpoints, init_params)
            step = int(state.step)
            if step >= self._last_step:
                _log.info("Nothing to do: step %d of %d is saved.", step, self._last_step)
                return Outcome(step, {}, "")
            frozen = place_frozen(self._system, self._mesh, jax.random.key(run.seed), load_frozen)
            with contextlib.closing(open_pipeline(step)) as pipeline:
                if position is not None:
                    _check(check_position, position, pipeline.state())
                self._write_config()  # now that nothing speaks against going on with it
                with contextlib.closing(DeviceFeed(pipeline, batch_sharding(self._mesh))) as feed:
                    return self._loop(state, frozen, pipeline, feed, checkpoints, stop)

    def _initial_state(
        self, checkpoints: Checkpoints, init_params: Callable[[Any], Any] | None
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """Newest checkpoint of the workdir, else `init_params`, else random."""
        run, system = self._run, self._system
        ema = bool(run.options.ema_decay)
        init = make_init(system.init, run.tx, ema=ema)
        key = jax.random.key(run.seed)
        abstract = jax.eval_shape(init, key)
        shardings = state_shardings(abstract, self._mesh)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        restored = checkpoints.restore_latest(abstract)
        if restored is not None:
            state, position, meta = restored
            _log.info(
                "Resumed from the checkpoint of step %d, written by vmae_jax %s.",
                int(state.step),
                meta["versions"]["vmae_jax"],
            )
            for difference in _differences(meta["config"], run.config):
                _log.warning("Unlike in the checkpoint: %s.", difference)
            return state, position
        if init_params is None:
            return jax.jit(init, out_shardings=shardings)(key), None

        # The weights are an argument: closed over, they would become constants of the program.
        def init_from(key: jax.Array, params: Any) -> TrainState:
            return make_init(lambda _: params, run.tx, ema=ema)(key)

        params = init_params(abstract.params)
        return jax.jit(init_from, out_shardings=shardings)(key, params), None

    def _write_config(self) -> None:
        if jax.process_index() == 0:
            path = pathlib.Path(self._workdir) / "config.json"
            path.write_text(json.dumps(self._run.config, indent=2, sort_keys=True) + "\n")

    def _loop(
        self,
        state: TrainState,
        frozen: Any,
        pipeline: Any,
        feed: DeviceFeed,
        checkpoints: Checkpoints,
        stop: StopSignal,
    ) -> Outcome:
        run = self._run
        key = jax.random.fold_in(jax.random.key(run.seed), 1)  # apart from that of the parameters
        facts = pipeline.state()
        step = first = int(state.step)
        writer = metrics_lib.Writer(
            self._workdir,
            total_steps=run.total_steps,
            first_step=step,
            wandb_project=run.wandb_project,
            config=run.config,
        )
        interval = _Interval()
        row: dict[str, float] = {}
        train_step = throughput = pictured = failure = None
        in_flight = _InFlight()

        def log() -> dict[str, float]:
            row = interval.fetch()  # the only wait for the device's newest results
            row |= throughput.row(run.total_steps - step)
            row["failed_saves"] = float(checkpoints.failed_saves)
            writer.write(step, row)
            interval.report_skipped(self._workdir)
            return row

        def save() -> None:
            position = {**facts, "batches": step}
            checkpoints.save(state, step=step, data=position, config=run.config)

        with contextlib.closing(writer):
            while step < self._last_step:
                delivery = None
                if failure is None:
                    try:
                        delivery = feed.next(busy=in_flight.busy, stop=lambda: bool(stop.name))
                    except Exception as error:  # raised below, once the steps done are safe
                        failure = error
                if delivery is None and jax.process_count() == 1:
                    break
                # With other processes a wish to stop takes a step, in which all hear of it.
                batch = self._batch(delivery, failed=failure is not None)
                if train_step is None or throughput is None:
                    train_step = self._compile(state, frozen, batch, key)
                    throughput = self._throughput(pipeline.batch_videos)
                    pictured = self._first_clips(batch, pipeline.batch_videos)
                state, values = train_step(state, frozen, batch, key)
                step += 1
                throughput.add(delivery.wait_s if delivery else 0.0)
                if delivery:
                    interval.add(step, values, delivery.host)
                writer.tick(step)
                in_flight.add(step, values)
                if throughput.steps_ever == 1:
                    jax.block_until_ready(values)
                    throughput.restart()  # the first step also warms up
                void = in_flight.first_void(wait_for_all=self._acts_after(step))
                if void is not None:
                    step = void - 1
                    interval.forget_from(void)
                    break

                if step % run.log_every == 0:
                    row = log()
                    interval = _Interval()
                    failure = self._non_finite(row, step)
                    if failure is not None:
                        break
                if run.picture_every and step % run.picture_every == 0:
                    self._picture(state, frozen, pictured, key, step, writer)
                    throughput.restart()
                if self._evaluate and run.eval_every and step % run.eval_every == 0:
                    try:
                        writer.write(step, self._figures(state))
                    except Exception as error:  # raised below, once the steps done are safe
                        if jax.process_count() > 1:  # the others wait inside of the evaluation
                            raise
                        failure = error
                        break
                    throughput.restart()
                if step % run.checkpoint_every == 0:
                    save()
            if interval.steps:
                row = log()
            if step > first:
                save()  # unless it is there
            saved = checkpoints.wait()
        if failure is None and in_flight.faults:
            failure = OtherProcessError(
                "another process of this run could not go on, and says why in its own log; step "
                f"{step} is saved, and the same command on all hosts goes on from there"
            )
        if failure is not None:
            raise failure
        if not saved:
            raise CheckpointError(
                f"step {step} was reached but could not be saved in {self._workdir}, see above; "
                "make room and give the same command again: it goes on from the last checkpoint"
            )
        reason = stop.name or ("a signal to another process" if in_flight.stops else "")
        if reason:
            _log.warning(
                "%s received: step %d is saved; the same command goes on from there.", reason, step
            )
        return Outcome(step, row, reason)

    def _acts_after(self, step: int) -> bool:
        """Whether something is done with the results of a step, other than to take the next."""
        run = self._run
        intervals = (run.log_every, run.picture_every, run.eval_every, run.checkpoint_every)
        return step == self._last_step or any(n and step % n == 0 for n in intervals)

    def _batch(self, delivery: Delivery | None, *, failed: bool) -> dict[str, jax.Array]:
        """What the system consumes of a delivery, or zeros, and what this process wishes."""
        if delivery is not None:
            check_batch(self._system, delivery.arrays)
            names = (*self._system.batch_spec, "notes")
            return {name: delivery.arrays[name] for name in names} | {"wishes": self._no_wishes}
        clips = self._run.clips // jax.process_count()
        batch = {
            name: jax.make_array_from_process_local_data(
                batch_sharding(self._mesh), np.zeros((clips // spec.clips, *spec.shape), spec.dtype)
            )
            for name, spec in self._system.batch_spec.items()
        }
        wishes = agreement.rows(self._mesh, (not failed, failed))
        return batch | {"wishes": wishes, "notes": agreement.rows(self._mesh, (0, 0))}

    def _first_clips(self, arrays: Mapping[str, jax.Array], videos: int) -> dict[str, jax.Array]:
        """One clip of each of the first few videos, on all devices: drawn in every picture."""

        @functools.partial(jax.jit, out_shardings=NamedSharding(self._mesh, P()))
        def pick(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            steps = {name: x.shape[0] // videos for name, x in batch.items()}
            return {name: x[:: steps[name]][:_CLIPS_PICTURED] for name, x in batch.items()}

        return pick({name: arrays[name] for name in self._system.batch_spec})

    def _compile(
        self, state: TrainState, frozen: Any, arrays: Mapping[str, jax.Array], key: jax.Array
    ) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """Compiles the step for the first batch's layout, and says how long it took."""
        begin = time.perf_counter()
        run = self._run
        train_step = make_train_step(self._system, run.tx, run.schedule, run.options)
        agreed_step = agreement.make_agreed_step(train_step)
        compiled = lower_step(agreed_step, state, frozen, arrays, key).compile()
        _log.info("Compiled the train step in %.1f s.", time.perf_counter() - begin)
        return compiled

    def _throughput(self, videos: int) -> metrics_lib.Throughput:
        return metrics_lib.Throughput(
            clips=self._run.clips,
            videos=videos,
            train_flops=self._system.train_flops,
            peak_flops=metrics_lib.chip_peak_flops(self._run.peak_tflops),
        )

    def _non_finite(self, row: Mapping[str, float], step: int) -> NonFiniteError | None:
        if row["skipped_in_a_row"] < self._run.max_skipped_in_a_row:
            return None
        return NonFiniteError(
            f"{int(row['skipped_in_a_row'])} updates in a row up to step {step} had a non-finite "
            f"loss or gradient; their clips are in {self._workdir}/skipped.*.jsonl. None of them "
            "changed the parameters, which are saved. Lower optim.base_lr, set optim.clip_norm, or "
            "look at those clips"
        )

    def _picture(
        self,
        state: TrainState,
        frozen: Any,
        clips: Mapping[str, jax.Array],
        key: jax.Array,
        step: int,
        writer: metrics_lib.Writer,
    ) -> None:
        if self._draw is None:
            return
        writer.picture("reconstruction", self._draw(state.params, frozen, clips, key), step)

    def _figures(self, state: TrainState) -> dict[str, float]:
        """How good the parameters are (their average, if one is kept), and what asking cost."""
        jax.block_until_ready(state.params)
        begin = time.perf_counter()
        figures = self._evaluate(state.params if state.ema is None else state.ema)
        now = time.perf_counter()
        self._evaluating_s += now - begin
        share = self._evaluating_s / (now - self._began)
        return {**figures, "eval_s": now - begin, "eval_share": share}


def check_batch(system: System, arrays: Mapping[str, Any]) -> None:
    """Compares a batch with what the system consumes, before the first compile.

    Raises:
      ValueError: a missing array, or another shape or dtype.
    """
    clips = arrays["index"].shape[0]
    for name, spec in system.batch_spec.items():
        if name not in arrays:
            raise ValueError(f"{system.name} needs {name!r} in a batch; it has {sorted(arrays)}")
        found = str(arrays[name].dtype), tuple(arrays[name].shape)
        expected = spec.dtype, (clips // spec.clips, *spec.shape)
        if found != expected:
            raise ValueError(
                f"batch[{name!r}] of {clips} clips is {found[0]} {found[1]}; {system.name} expects "
                f"{expected[0]} {expected[1]}: config.data and config.model must agree"
            )


def _check(
    check_position: Callable[[dict[str, Any], dict[str, Any]], object],
    saved: dict[str, Any],
    current: dict[str, Any],
) -> None:
    try:
        check_position(saved, current)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _differences(saved: Any, current: Any, path: str = "config") -> list[str]:
    """Fields in which two configs differ, in words."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        names = sorted(saved.keys() | current.keys())
        return [
            difference
            for name in names
            for difference in _differences(saved.get(name), current.get(name), f"{path}.{name}")
        ]
    current = json.loads(json.dumps(current))  # tuples are lists in a checkpoint
    return [] if saved == current else [f"{path} was {saved!r} and is {current!r}"]


class _InFlight:
    """Steps begun whose sums of wishes have not been read yet."""

    def __init__(self) -> None:
        self.stops = self.faults = 0  # processes that wished to stop, in the first void step
        self._steps: collections.deque[tuple[int, list[jax.Array]]] = collections.deque()

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        wishes = [values[name] for name in agreement.WISHES]
        for sum_ in wishes:
            sum_.copy_to_host_async()
        self._steps.append((step, wishes))

    def busy(self) -> bool:
        """Whether the devices have work."""
        return bool(self._steps) and not self._steps[-1][1][0].is_ready()

    def first_void(self, *, wait_for_all: bool) -> int | None:
        """The first step that changed nothing because a process wished to stop, or None.

        Waits for all steps but the newest few: without that the host would run ahead, and every
        step hold its batch in memory. All processes read the same sums after the same step.
        """
        while len(self._steps) > (0 if wait_for_all else _STEPS_IN_FLIGHT):
            step, wishes = self._steps.popleft()
            self.stops, self.faults = (int(sum_) for sum_ in wishes)
            if self.stops or self.faults:
                return step
        return None


class _Interval:
    """Metrics (still on the device) and host batches of the steps since the last log."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._values: list[Any] = []
        self._hosts: list[Any] = []  # this process's batches, without their arrays

    def add(self, step: int, values: dict[str, jax.Array], host: Any) -> None:
        self.steps.append(step)
        self._values.append(values)
        self._hosts.append(host)

    def forget_from(self, step: int) -> None:
        """Forgets a step, and those after it, that turned out to be void."""
        keep = sum(known < step for known in self.steps)
        for column in (self.steps, self._values, self._hosts):
            del column[keep:]

    def fetch(self) -> dict[str, float]:
        """Reads all values at once: averages over the good updates, or the latest of a counter."""
        self._values = jax.device_get(self._values)
        good = [values for values in self._values if not values["skipped"]] or self._values
        row = {}
        for name in self._values[-1].keys() - {*agreement.WISHES, "clips"}:
            if name in _LATEST:
                row[name] = float(self._values[-1][name])
            elif name == "skipped_in_a_row":
                row[name] = float(max(values[name] for values in self._values))
            elif name == "skipped":
                row[name] = float(sum(values[name] for values in self._values))
            else:
                row[name] = float(np.mean([values[name] for values in good], dtype=np.float64))
        # Which clips they were, in which order: two runs that saw the same agree in it.
        clips = [int(values["clips"]) for values in self._values]
        row["clips_crc32"] = float(zlib.crc32(json.dumps(clips).encode()))
        row["worker_restarts"] = float(self._hosts[-1].restarts)
        return row | metrics_lib.decode_times(
            np.concatenate([host.decode_s for host in self._hosts]),
            np.concatenate([host.worker for host in self._hosts]),
        )

    def report_skipped(self, workdir: str) -> None:
        """Writes down the clips of updates that were skipped; call after `fetch`."""
        rows = zip(self.steps, self._values, self._hosts, strict=True)
        bad = [(step, host.names()) for step, values, host in rows if values["skipped"]]
        if not bad:
            return
        path = pathlib.Path(workdir) / f"skipped.{jax.process_index()}.jsonl"
        lines = [json.dumps({"step": step, "clips": clips}) + "\n" for step, clips in bad]
        with metrics_lib.reported(f"clips of steps {bad[0][0]} to {bad[-1][0]}"):
            metrics_lib.append(path, "".join(lines))
        steps = [step for step, _ in bad]
        _log.error("Skipped %d non-finite update(s), steps %s; clips in %s.", len(bad), steps, path)


# Reported as of the last step of an interval; everything else is averaged over it.
_LATEST = ("lr", "param_norm", "skipped_total", "decode_failures")
