"""Where the numbers of a run go: JSONL, TensorBoard, W&B if asked for, and the terminal."""

import contextlib
import errno
import json
import logging
import math
import pathlib
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from vmae_jax import chips
from vmae_jax.config import ConfigError

_log = logging.getLogger(__name__)


def chip_peak_flops(configured_tflops: float) -> float | None:
    """Peak FLOP/s of one local chip: the configured value, the datasheet's, or None if unknown."""
    if configured_tflops:
        return configured_tflops * 1e12
    peak = chips.local().peak_tflops
    return None if peak is None else peak * 1e12


def device_memory_gib() -> float | None:
    """Peak GiB in use on the fullest local device; None where it is not reported (CPU)."""
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    known = [p for p in peaks if p is not None]
    return max(known) / 2**30 if known else None


class Writer:
    """Writes rows of metrics; silent on all processes but the first."""

    def __init__(
        self,
        workdir: str,
        *,
        total_steps: int,
        first_step: int,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens `metrics.jsonl` and TensorBoard files; drops rows that a lost stretch left behind.

        Args:
          workdir: folder of the run.
          total_steps: steps of the whole run, for the progress display.
          first_step: updates already done; later rows of an earlier process are dropped.
          wandb_project: W&B project, or "" for none.
          config: resolved config, sent to W&B.
        """
        self._active = jax.process_index() == 0
        if not self._active:
            return
        folder = pathlib.Path(workdir)
        self._path = folder / "metrics.jsonl"
        _drop_rows_after(self._path, first_step)
        self._pictures = folder / "pictures"
        self._events = _EventFile(folder / "tensorboard", first_step)
        self._wandb = _open_wandb(wandb_project, folder, config) if wandb_project else None
        self._bar = (
            tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row, or reports that it cannot; `step` is the number of updates done."""
        if not self._active:
            return
        # JSON has no NaN: a non-finite value is written as null.
        clean = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
        with reported(f"metrics of step {step}"):
            append(self._path, json.dumps({"step": step, **clean}) + "\n")
            self._events.add(step, [summary.scalar(name, value) for name, value in row.items()])
        if self._wandb is not None:
            self._wandb.log(dict(row), step=step)
        shown = [name for name in _LINE if name in row] or row  # figures of an evaluation: all
        line = "  ".join(f"{name} {_short(row[name])}" for name in shown)
        if self._bar is not None:
            self._bar.set_postfix_str(line)
        else:
            _log.info("step %d  %s", step, line)

    def tick(self, step: int) -> None:
        """Moves the progress display, if there is one, to `step` updates done."""
        if self._active and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Saves a picture, uint8 [H, W, 3], and adds it to TensorBoard."""
        if not self._active:
            return
        with reported(f"picture of step {step}"):
            self._pictures.mkdir(exist_ok=True)
            Image.fromarray(image).save(self._pictures / f"step_{step:08d}.png")
            self._events.add(step, [summary.image(name, image, dataformats="HWC")])
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Closes what is open."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()


class _EventFile:
    """TensorBoard's events, written when they are added, so that an error of the disk shows here.

    tensorboardX's own writer has a thread for that, which such an error ends; the run then hangs
    as soon as the queue is full.
    """

    def __init__(self, folder: pathlib.Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._first_step = folder, first_step
        self._writer: EventsWriter | None = None

    def add(self, step: int, summaries: Iterable[Any]) -> None:
        """Adds summaries; after an OSError the next ones go to a new file."""
        writer, self._writer = self._writer or self._open(), None
        for value in summaries:
            writer.write_event(Event(wall_time=time.time(), step=step, summary=value))
        writer.flush()
        self._writer, self._first_step = writer, step

    def _open(self) -> EventsWriter:
        writer = EventsWriter(str(self._folder / "events"))
        # What other files hold of later steps, of a stretch that was lost, is not shown.
        started = SessionLog(status=SessionLog.START)
        writer.write_event(Event(step=self._first_step + 1, session_log=started))
        return writer


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Reports a disk that is full or gone, and goes on: training is worth more than its log."""
    try:
        yield
    except OSError as error:
        _log.error("The %s could not be written: %s", what, error)


def append(path: pathlib.Path, text: str) -> None:
    """Appends all of a text to a file, or nothing.

    Raises:
      OSError: it could not be written.
    """
    with path.open("ab", buffering=0) as file:
        size, data = file.tell(), text.encode()
        try:
            if file.write(data) < len(data):  # what is left of the disk
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        except OSError:
            file.truncate(size)
            raise


_LINE = ("loss", "lr", "grad_norm", "step_s", "clips_per_s", "mfu", "data_wait", "eta_s")


def _short(value: float) -> str:
    return f"{value:.4g}"


def _drop_rows_after(path: pathlib.Path, step: int) -> None:
    """A killed run may have logged steps after its last checkpoint; they come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            _log.warning("%s: dropped a line cut off by a crash: %.80s", path, line)
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


def _open_wandb(project: str, folder: pathlib.Path, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "config.train.wandb_project is set but wandb is not installed: pip install "
            "'vmae_jax[wandb]', or leave the field empty"
        ) from error
    # One id per workdir: a resumed run goes on in the same W&B run.
    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12])
    return wandb.init(
        project=project,
        dir=str(folder),
        name=folder.name,
        id=id_file.read_text(),
        resume="allow",
        config=dict(config or {}),
    )


def decode_times(seconds: np.ndarray, worker: np.ndarray) -> dict[str, float]:
    """Metrics that show slow videos and slow workers, of this process's videos.

    Args:
      seconds: float [n], spent on each video.
      worker: int [n], which worker made it.

    Returns:
      decode_ms, decode_ms_max: per video, mean and slowest; worker_imbalance: time that the busiest
      worker spent, over the mean of all (1: even). Batches come from the workers in turn, so the
      slowest sets the pace of all.
    """
    busy = np.bincount(worker, weights=seconds)
    busy = busy[np.bincount(worker) > 0]
    return {
        "decode_ms": 1e3 * float(seconds.mean()),
        "decode_ms_max": 1e3 * float(seconds.max()),
        "worker_imbalance": float(busy.max() / busy.mean()) if busy.any() else 1.0,
    }


class Throughput:
    """Turns step counts and waits since the last log into rates."""

    def __init__(self, *, clips: int, videos: int, train_flops: float, peak_flops: float | None):
        """Takes clips and videos per step, training FLOPs per clip, a chip's peak or None."""
        self._clips, self._videos = clips, videos
        self._flops, self._peak = train_flops, peak_flops
        self.steps_ever = 0
        self.restart()

    def restart(self) -> None:
        """Begins a new interval, e.g. after compiling, so that it is not counted."""
        self._begin, self._steps, self._wait_s = time.perf_counter(), 0, 0.0

    def add(self, wait_s: float) -> None:
        """Counts one step and the seconds it waited for data."""
        self._steps += 1
        self.steps_ever += 1
        self._wait_s += wait_s

    def row(self, steps_left: int) -> dict[str, float]:
        """Metrics of the interval, which ends here; call after a blocking read of its last step.

        Both rates are given: `clips_per_s` counts every crop, `videos_per_s` decoded videos. An
        interval without a step (the first one is not counted) has no rates.
        """
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        steps = self._steps
        if not steps:
            self.restart()
            return {}
        chips = jax.device_count()
        clips_per_s = steps * self._clips / seconds
        row = {
            "step_s": seconds / steps,
            "clips_per_s": clips_per_s,
            "videos_per_s": steps * self._videos / seconds,
            "clips_per_s_per_chip": clips_per_s / chips,
            "data_wait": min(self._wait_s / seconds, 1.0),
            "eta_s": steps_left * seconds / steps,
        }
        if self._peak:
            row["mfu"] = clips_per_s / chips * self._flops / self._peak
        memory = device_memory_gib()
        if memory is not None:
            row["memory_gib"] = memory
        self.restart()
        return row
