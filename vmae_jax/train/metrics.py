"""Where the numbers of a run go: JSONL, TensorBoard, W&B if asked for, and the terminal."""

import json
import logging
import math
import pathlib
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
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
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._wandb = _open_wandb(wandb_project, folder, config) if wandb_project else None
        self._bar = (
            tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row; `step` is the number of updates done."""
        if not self._active:
            return
        # JSON has no NaN: a non-finite value is written as null.
        clean = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(row), step=step)
        line = "  ".join(f"{k} {_short(row[k])}" for k in _LINE if k in row)
        if self._bar is not None:
            self._bar.set_postfix_str(line)
        else:
            _log.info("step %d  %s", step, line)

    def tick(self, step: int) -> None:
        """Moves the progress display, if there is one, to `step` updates done."""
        if self._active and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard."""
        if self._active:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
            if self._wandb is not None:
                import wandb

                self._wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Flushes and closes everything."""
        if not self._active:
            return
        self._file.close()
        self._tensorboard.close()
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()


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
