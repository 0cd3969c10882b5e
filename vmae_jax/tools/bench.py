r"""Times training steps and the input pipeline; prints a table and writes JSON.

    python -m vmae_jax.tools.bench step --config=configs/v2_vitb.py --clips=8 --dtype=bfloat16
    python -m vmae_jax.tools.bench step --config=configs/v2_vitb.py --clips=8 --decoder-mask=none
    python -m vmae_jax.tools.bench data --manifest=train.csv --workers=2
    python -m vmae_jax.tools.bench data --manifest=train.csv --repeats=4 --resize=device
    python -m vmae_jax.tools.bench data --manifest=train.csv --recipe=finetune --repeats=2

A step is timed on data that is already on the device, between two blocking reads, after warm-up.
Where a system has a part that is never trained (a teacher), its targets are timed too, as a program
of their own, in turns with the step; what the step takes beyond them is the student's.
MFU is model FLOPs (matmuls, forward and backward, no recomputation) over the chip's stated peak;
where that is unknown the achieved TFLOP/s stand alone.

The data pipeline is measured in processor time per training clip: what counts is how many cores a
host needs, and other programs on the machine then disturb less.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.data.clips import RESIZES
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.stages import STAGES
from vmae_jax.systems.base import Batch, System, clip_keys
from vmae_jax.train import metrics
from vmae_jax.train.checkpoints import versions
from vmae_jax.train.frozen import place_frozen
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import lower_step, make_train_step

# What `data` reads; the numbers are those of the released scripts.
RECIPES = {
    "pretrain": {},
    "finetune": {
        "sampling": "window",
        "crop": "resized",
        "filter": "bilinear",
        "randaugment": (7, 4, 0.5),
    },
    # Of each repeat its own frames, as MAE-ST pretrains.
    "windows": {
        "sampling": "seconds",
        "crop": "resized",
        "crop_area": (0.5, 1.0),
        "filter": "bilinear",
        "repeat_windows": True,
    },
    "test": {"sampling": "window", "select": "views", "crop": "views", "filter": "bilinear"},
}

# Processor time of the host that a training clip may take, by the model that it feeds.
HOST_BUDGETS_MS = {"vit_b": 8.0, "vit_g": 40.0}


def provenance() -> dict[str, Any]:
    """What a figure is worth nothing without: machine, versions, commit, time."""
    here = pathlib.Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit or "unknown",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_name() -> str:
    facts = pathlib.Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class LiveStep:
    """The real train step of a recipe (masks, targets, loss, gradient, AdamW), ready to be run.

    Attributes:
      system: of the recipe.
      compiled: the program.
      compile_s: seconds that the compiler took.
      compiled_targets: the targets alone, of a system with a part that is never trained; else None.
    """

    def __init__(self, config: ConfigDict, *, clips: int):
        """Compiles it, and puts a state and random clips on the devices.

        Args:
          config: recipe; its batch is replaced by `clips`.
          clips: clips per step over all devices.
        """
        self.system = systems.build(config)
        run = assemble.make_run(config, config_lib.plan(config, config.train.batch_videos))
        mesh = make_mesh(run.fsdp)
        rng = np.random.default_rng(0)
        with jax.set_mesh(mesh):
            init = make_init(self.system.init, run.tx, ema=bool(run.options.ema_decay))
            self._key = jax.random.key(0)
            layout = state_shardings(jax.eval_shape(init, self._key), mesh)
            self._state = jax.jit(init, out_shardings=layout)(self._key)
            self._frozen = place_frozen(self.system, mesh, self._key)
            batch = _random_batch(self.system, clips, rng)
            self._batch = jax.device_put(batch, batch_sharding(mesh))
            step = make_train_step(self.system, run.tx, run.schedule, run.options)
            begin = time.perf_counter()
            lowered = lower_step(step, self._state, self._frozen, self._batch, self._key)
            self.compiled = lowered.compile()
            self.compile_s = time.perf_counter() - begin
            self.compiled_targets = None
            if self._frozen is not None:
                lowered = jax.jit(self._targets).lower(self._frozen, self._batch, self._key)
                self.compiled_targets = lowered.compile()

    def _targets(self, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.system.targets(frozen, batch, clip_keys(key, 0, batch["index"]))

    def run_targets(self) -> Batch:
        """Computes the targets once, alone, and waits for them."""
        return jax.block_until_ready(self.compiled_targets(self._frozen, self._batch, self._key))

    def run(self) -> dict[str, jax.Array]:
        """Takes one step and waits for it; returns its metrics."""
        self._state, values = self.compiled(self._state, self._frozen, self._batch, self._key)
        return jax.block_until_ready(values)


def bench_step(config: ConfigDict, *, clips: int, steps: int, warmup: int) -> dict[str, Any]:
    """Times train steps on random clips.

    Args:
      config, clips: see `LiveStep`.
      steps: timed steps.
      warmup: steps before the clock starts.

    Returns:
      seconds per step (median, p95), rates, FLOPs, memory and compile time; where something is
      never trained, seconds of the targets and of the rest, and multiply-accumulates of each.
    """
    step, seconds, targets_s = LiveStep(config, clips=clips), [], []
    for i in range(warmup + steps):
        begin = time.perf_counter()
        values = step.run()
        middle = time.perf_counter()
        if step.compiled_targets:
            step.run_targets()
        if i >= warmup:
            seconds.append(middle - begin)
            targets_s.append(time.perf_counter() - middle)
    median = float(np.median(seconds))
    parts = _parts(step, median, float(np.median(targets_s))) if step.compiled_targets else {}
    rate = clips / median / jax.device_count()
    peak = metrics.chip_peak_flops(config.train.peak_tflops)
    return {
        "step_s": median,
        "step_s_p95": float(np.percentile(seconds, 95)),
        "clips_per_s_per_chip": rate,
        **parts,
        "gmac_forward_per_clip": sum(step.system.macs.values()) / 1e9,
        "tflops_per_chip": rate * step.system.train_flops / 1e12,
        "mfu": rate * step.system.train_flops / peak if peak else None,
        "memory_gib": metrics.device_memory_gib() or _compiled_gib(step.compiled),
        "compile_s": step.compile_s,
        "loss": float(values["loss"]),
    }


def _parts(step: LiveStep, step_s: float, targets_s: float) -> dict[str, float]:
    """What teacher and student cost, each by itself."""
    macs = dict(step.system.macs)
    teacher = macs.pop("teacher")
    return {
        "targets_s": targets_s,
        "rest_s": step_s - targets_s,
        "targets_share": targets_s / step_s,
        "gmac_teacher_per_clip": teacher / 1e9,
        "gmac_student_per_clip": sum(macs.values()) / 1e9,
    }


def _random_batch(system: System, clips: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch = {}
    for name, spec in system.batch_spec.items():
        if name == "index":
            batch[name] = np.arange(clips, dtype=spec.dtype)
        elif name == "label":
            batch[name] = np.zeros(clips, spec.dtype)
        elif name == "box":
            whole = [0, 0, *system.batch_spec["source"].shape[1:3]]
            batch[name] = np.tile(np.array(whole, spec.dtype), (clips, 1))
        else:
            batch[name] = rng.integers(0, 256, (clips // spec.clips, *spec.shape), spec.dtype)
    return batch


def _compiled_gib(compiled: Any) -> float | None:
    """What the compiler plans to use, for devices that do not report what they used."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return (arguments - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes) / 2**30


def bench_data(options: PipelineOptions, *, videos: int, batch_videos: int) -> dict[str, Any]:
    """Measures the processor time that the pipeline takes, stage by stage, in this very run.

    Args:
      options: of the pipeline.
      videos: how many are measured.
      batch_videos: batch of the pipeline.

    Returns:
      milliseconds of processor time per training clip: by stage, as the workers took it; in all,
      over all processes; the rest of it, which is putting batches together and passing them on.
      What part that is of the budgets, rates per core and of the whole pipeline.
    """
    with ClipPipeline(options, batch_videos=batch_videos, seed=0) as pipeline:
        for _ in range(2):  # starts the workers and fills their buffers
            batch = next(pipeline)
        stage_s, batches = np.zeros(len(STAGES)), max(videos // batch_videos, 1)
        begin, cpu_begin = time.perf_counter(), cpu_seconds()
        for _ in range(batches):
            batch = next(pipeline)
            stage_s += batch.stage_s.sum(axis=0)
        seconds, cpu_s = time.perf_counter() - begin, cpu_seconds() - cpu_begin
    clips = batches * len(batch.arrays["index"])
    host_ms = 1e3 * cpu_s / clips
    sent = sum(array.nbytes for array in batch.arrays.values())
    stages_ms = {name: 1e3 * s / clips for name, s in zip(STAGES, stage_s.tolist(), strict=True)}
    return {
        **{f"{name}_ms": value for name, value in stages_ms.items()},
        "batch_and_transport_ms": host_ms - sum(stages_ms.values()),
        "host_ms_per_clip": host_ms,
        **{f"share_of_{name}_budget": host_ms / most for name, most in HOST_BUDGETS_MS.items()},
        "clips_per_s_per_core": 1e3 / host_ms,
        "pipeline_clips_per_s": clips / seconds,
        "pipeline_workers": options.workers,
        "mb_per_clip": sent / len(batch.arrays["index"]) / 1e6,
    }


def cpu_seconds() -> float:
    """Processor time taken so far by this process and those of its children that live (Linux)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        # Behind the name, which may hold anything: state is field 3, user and system time 14, 15.
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def load_config(argument: str) -> ConfigDict:
    """Reads `file.py` or `file.py:mode`, as the `--config` flag of main does.

    Raises:
      ConfigError: no such file.
    """
    path, _, mode = argument.partition(":")
    if not pathlib.Path(path).is_file():
        raise config_lib.ConfigError(f"no config at {path}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(mode)


def _step_row(args: argparse.Namespace) -> dict[str, Any]:
    config = assemble.with_classes(load_config(args.config)).unlock()
    config.train.batch_videos, config.data.repeats = args.clips, 1
    config.model.dtype = args.dtype or config.model.dtype
    stacks = [part for part in config.model.values() if isinstance(part, ConfigDict)]
    for i, part in enumerate(stacks):
        # One name for both stacks, or two with a slash between.
        part.attention = (args.attention or part.attention).split("/")[-i:][0]
        part.remat = args.remat or part.remat
    config.data.resize = args.resize or config.data.resize
    masking = config.masking if "masking" in config else {}
    if args.decoder_mask == "none":
        if "decoder" not in masking:
            raise config_lib.ConfigError(f"--decoder-mask=none: {args.config} has no decoder mask")
        masking.decoder = ("none", 0.0)
    config_lib.validate(config)
    config_lib.check_devices(config, jax.device_count())
    row = bench_step(config, clips=args.clips, steps=args.steps, warmup=args.warmup)
    settings = {
        "config": args.config,
        "clips": args.clips,
        "dtype": config.model.dtype,
        **systems.build(config).choices,
        "remat": config.model.encoder.remat,
        **{
            f"{name}_mask": "/".join(map(str, masking[name]))
            for name in ("encoder", "decoder")
            if name in masking
        },
    }
    return settings | row


def _data_row(args: argparse.Namespace) -> dict[str, Any]:
    options = PipelineOptions(
        manifest=args.manifest,
        root=args.root or "",
        frames=args.frames,
        stride=args.stride,
        size=(args.size, args.size),
        repeats=args.repeats,
        resize=args.resize,
        canvas=args.canvas,
        workers=args.workers,
        **RECIPES[args.recipe],
    )
    row = bench_data(options, videos=args.videos, batch_videos=args.batch)
    canvas = {"canvas": "x".join(map(str, args.canvas))} if args.resize == "device" else {}
    names = ("manifest", "recipe", "size", "repeats", "resize")
    settings = {name: getattr(args, name) for name in names}
    return {**settings, **canvas, **row}


def table(row: dict[str, Any]) -> str:
    """Two columns: name, value."""
    width = max(len(name) for name in row)
    shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def height_by_width(text: str) -> tuple[int, int]:
    """Reads a size as it is given on command lines: "256x456"."""
    height, width = text.split("x")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    step = kinds.add_parser("step", help="a training step on random clips")
    step.add_argument("--config", required=True, help="recipe, e.g. configs/v2_vitb.py")
    step.add_argument("--clips", type=int, default=8, help="per step, over all devices")
    step.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: the recipe's")
    step.add_argument("--attention", help="auto, xla, ... for both stacks, or ENCODER/DECODER")
    step.add_argument("--remat", help="none, named or full")
    step.add_argument("--resize", choices=["host", "device"], help="default: the recipe's")
    step.add_argument("--decoder-mask", choices=["recipe", "none"], default="recipe")
    step.add_argument("--steps", type=int, default=10)
    step.add_argument("--warmup", type=int, default=3)
    data = kinds.add_parser("data", help="the input pipeline, stage by stage")
    data.add_argument("--manifest", required=True)
    data.add_argument("--root")
    data.add_argument("--recipe", choices=RECIPES, default="pretrain", help="default: pretrain")
    data.add_argument("--videos", type=int, default=64, help="timed (default: 64)")
    data.add_argument("--batch", type=int, default=16, help="videos in a batch")
    data.add_argument("--frames", type=int, default=16)
    data.add_argument("--stride", type=int, default=4)
    data.add_argument("--size", type=int, default=224)
    data.add_argument("--repeats", type=int, default=1)
    data.add_argument("--resize", choices=RESIZES, default="host")
    data.add_argument(
        "--canvas",
        type=height_by_width,
        default=(256, 456),
        help="default: 256x456",
        metavar="HxW",
    )
    data.add_argument("--workers", type=int, default=1)
    for one in (step, data):
        one.add_argument("--json", help="also append the figures, as one line, to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        row = _step_row(args) if args.kind == "step" else _data_row(args)
    except ValueError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    facts = provenance()
    print(table({"bench": args.kind, **row, **{k: facts[k] for k in ("device", "cpu", "commit")}}))
    if args.json:
        with pathlib.Path(args.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"bench": args.kind, **row, **facts}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
