"""The training loop: fetch, step, log, draw, save, stop - in that order, for every system."""

import dataclasses
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from vmae_jax.systems.base import System
from vmae_jax.train import metrics as metrics_lib
from vmae_jax.train.checkpoints import Checkpoints
from vmae_jax.train.feed import DeviceFeed
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import TrainState, make_init
from vmae_jax.train.step import StepOptions, make_train_step


class NonFiniteError(RuntimeError):
    """Too many updates in a row were not finite."""


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the step in flight; a second one kills."""

    def __init__(self) -> None:
        self.name = ""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs to know beyond the system and the data.

    Attributes:
      total_steps: updates of the whole schedule.
      stop_after: end this process at that step; 0: at `total_steps`.
      schedule: step -> learning rate.
      tx: optimizer without its learning rate.
      options: of the step.
      seed: of parameters, masks and everything drawn on the device.
      fsdp: devices that share one copy of the parameters, at most.
      log_every, picture_every, checkpoint_every, keep_last, keep_every: in steps; 0 = never.
      max_skipped_in_a_row: non-finite updates before the run stops.
      stall_timeout_s: longest wait for a batch.
      peak_tflops: per chip; 0: the datasheet's.
      wandb_project: or "".
      config: resolved config as plain values, saved beside the state.
    """

    total_steps: int
    stop_after: int
    schedule: Callable[[jax.Array], jax.Array]
    tx: optax.GradientTransformation
    options: StepOptions
    seed: int
    fsdp: int
    log_every: int
    picture_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int
    max_skipped_in_a_row: int
    stall_timeout_s: float
    peak_tflops: float
    wandb_project: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: the step reached, the last logged row, the signal that ended it or ""."""

    step: int
    last_row: Mapping[str, float]
    signal: str


def train(
    system: System,
    run: Run,
    workdir: str,
    *,
    open_pipeline: Callable[[int], Any],
    check_position: Callable[[Mapping[str, Any], Mapping[str, Any]], None],
    init_params: Callable[[Any], Any] | None = None,
    draw: Callable[[System, Any, Any, jax.Array], np.ndarray] | None = None,
) -> Outcome:
    """Trains to `run.total_steps`, resuming from the workdir's newest checkpoint if there is one.

    Args:
      system: the method.
      run: schedule, intervals and limits.
      workdir: folder of the run.
      open_pipeline: first step -> iterator of host batches with `state()`, `close()`.
      check_position: (saved, current) facts of the data order; raises if they do not agree.
      init_params: abstract parameters -> parameters to start from at step 0 (`init_from`).
      draw: (system, params, batch, keys) -> picture uint8 [H, W, 3].

    Raises:
      NonFiniteError, DataStalledError, CheckpointError and whatever the pipeline raises.
    """
    stop = StopSignal()
    mesh = make_mesh(run.fsdp)
    with jax.set_mesh(mesh):
        # Set-up that takes long runs before the pipeline opens; its processes would idle.
        checkpoints = Checkpoints(workdir, keep_last=run.keep_last, keep_every=run.keep_every)
        state, frozen, position = _initial_state(system, run, mesh, checkpoints, init_params)
        step = int(state.step)
        pipeline = open_pipeline(step)
        try:
            if position is not None:
                check_position(position, pipeline.state())
            return _loop(
                system, run, workdir, mesh, checkpoints, pipeline, draw, state, frozen, stop
            )
        finally:
            pipeline.close()
            checkpoints.close()


def _initial_state(system, run, mesh, checkpoints, init_params):
    """Newest checkpoint, else `init_from`, else random; and the frozen tree."""
    init = make_init(system.init, run.tx, ema=bool(run.options.ema_decay))
    key = jax.random.key(run.seed)
    abstract = jax.eval_shape(init, key)
    shardings = state_shardings(abstract, mesh)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    frozen = None
    if system.init_frozen is not None:
        layout = state_shardings(jax.eval_shape(system.init_frozen, key), mesh)
        frozen = jax.jit(system.init_frozen, out_shardings=layout)(key)

    restored = checkpoints.restore_latest(abstract)
    if restored is not None:
        state, position, meta = restored
        logging.info(
            "Resumed from the checkpoint of step %d (written with vmae_jax %s).",
            int(state.step), meta["versions"]["vmae_jax"],
        )  # fmt: skip
        return state, frozen, position
    if init_params is None:
        return jax.jit(init, out_shardings=shardings)(key), frozen, None
    params = init_params(abstract.params)
    from_params = make_init(lambda _: params, run.tx, ema=bool(run.options.ema_decay))
    return jax.jit(from_params, out_shardings=shardings)(key), frozen, None


def _loop(system, run, workdir, mesh, checkpoints, pipeline, draw, state, frozen, stop) -> Outcome:
    key = jax.random.fold_in(jax.random.key(run.seed), 1)  # 0 made the parameters
    train_step = jax.jit(
        make_train_step(system, run.tx, run.schedule, run.options),
        # As the inputs', or the second call would meet another layout.
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
        donate_argnums=0,
    )
    first = step = int(state.step)
    last = min(run.stop_after or run.total_steps, run.total_steps)
    writer = metrics_lib.Writer(
        workdir, total_steps=run.total_steps, first_step=first, wandb_project=run.wandb_project
    )
    feed = DeviceFeed(pipeline, batch_sharding(mesh), timeout_s=run.stall_timeout_s)
    facts = pipeline.state()
    pending: list[dict[str, jax.Array]] = []  # device scalars of the steps since the last log
    clips: dict[int, list[str]] = {}  # names of the clips of those steps
    decode_failures = 0
    row: dict[str, float] = {}
    saved_at = first if first else -1
    throughput = None
    try:
        while step < last and not stop.name:
            delivery = feed.next()
            if throughput is None:
                throughput, compiled = _compile(
                    train_step, system, run, state, frozen, delivery, key, pipeline
                )
            state, values = compiled(state, frozen, delivery.arrays, key)
            step += 1
            throughput.add(delivery.wait_s)
            pending.append(values)
            clips[step] = pipeline.names(delivery.host)
            decode_failures += len(delivery.host.failures)
            if step == first + 1:
                jax.block_until_ready(values["loss"])
                throughput.restart()  # the first step warms up and fills the queues

            stopping = step == last or bool(stop.name)
            if step % run.log_every == 0 or stopping:
                fetched = jax.device_get(pending)  # the only wait for the device
                row = _mean_row(fetched) | throughput.row(run.total_steps - step)
                row["decode_failures"] = decode_failures
                writer.write(step, row)
                _report_skipped(workdir, step, fetched, clips)
                pending, clips = [], {}
                if row["skipped_in_a_row"] >= run.max_skipped_in_a_row:
                    raise NonFiniteError(
                        f"{int(row['skipped_in_a_row'])} updates in a row had a non-finite loss or "
                        f"gradient (step {step}); their clips are listed in {workdir}/skipped.jsonl. "
                        "Lower optim.base_lr, set optim.clip_norm, or look at those clips; the last "
                        "good checkpoint is kept"
                    )
            if draw and run.picture_every and (step % run.picture_every == 0 or step == last):
                _picture(draw, system, state, delivery, key, workdir, step, writer)
                throughput.restart()
            if step % run.checkpoint_every == 0 or stopping:
                checkpoints.save(
                    state, step=step, data={**facts, "consumed_batches": step}, config=run.config
                )
                saved_at = step
        checkpoints.wait()
        if stop.name:
            logging.warning(
                "%s received: saved step %d and stopped; the same command goes on from there.",
                stop.name, saved_at,
            )  # fmt: skip
        return Outcome(step, row, stop.name)
    finally:
        feed.close()
        writer.close()


def _compile(train_step, system, run, state, frozen, delivery, key, pipeline):
    """Compiles the step for the first batch's layout, and says how long it took."""
    _check_batch(system, delivery.arrays)
    begin = time.perf_counter()
    compiled = train_step.lower(state, frozen, delivery.arrays, key).compile()
    logging.info("Compiled the train step in %.1f s.", time.perf_counter() - begin)
    clips = delivery.arrays["video"].shape[0]
    throughput = metrics_lib.Throughput(
        clips=clips,
        videos=pipeline.batch_videos,
        train_flops=system.train_flops,
        peak_flops=metrics_lib.chip_peak_flops(run.peak_tflops),
    )
    return throughput, compiled


def _check_batch(system: System, arrays: Mapping[str, jax.Array]) -> None:
    for name, spec in system.batch_spec.items():
        if name not in arrays:
            raise ValueError(f"{system.name} needs {name!r} in a batch; it has {sorted(arrays)}")
        got = (arrays[name].shape[1:], arrays[name].dtype.name)
        if got != (spec.shape, spec.dtype):
            raise ValueError(
                f"batch[{name!r}] is {got[1]} {got[0]} per clip; {system.name} expects "
                f"{spec.dtype} {spec.shape}: data.frames, data.size and model must agree"
            )


# Averaged over an interval; the rest is reported as of its last step.
_AVERAGED_EXCEPT = ("lr", "param_norm", "skipped_total", "skipped_in_a_row")


def _mean_row(fetched: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Metrics of the last step, those that vary from batch to batch as means over the interval.

    Updates that were skipped count in `skipped` and in nothing else.
    """
    good = [values for values in fetched if not values["skipped"]] or fetched
    row = {}
    for name, value in fetched[-1].items():
        if name in _AVERAGED_EXCEPT:
            row[name] = float(value)
        elif name == "skipped":
            row[name] = float(sum(values[name] for values in fetched))
        else:
            row[name] = float(np.mean([values[name] for values in good], dtype=np.float64))
    return row


def _report_skipped(workdir, step, fetched, clips) -> None:
    """Writes down which clips were in the updates that were skipped."""
    bad = [step - len(fetched) + 1 + i for i, values in enumerate(fetched) if values["skipped"]]
    if not bad:
        return
    path = pathlib.Path(workdir) / f"skipped.{jax.process_index()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for number in bad:
            file.write(json.dumps({"step": number, "clips": clips[number]}) + "\n")
    logging.error("Skipped %d non-finite update(s) (%s); clips in %s.", len(bad), bad, path)


def _picture(draw, system, state, delivery, key, workdir, step, writer) -> None:
    image = draw(system, state.params, delivery.arrays, key)
    if jax.process_index() == 0:
        from PIL import Image

        folder = pathlib.Path(workdir) / "pictures"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"step_{step:08d}.png")
        writer.picture("reconstruction", image, step)
