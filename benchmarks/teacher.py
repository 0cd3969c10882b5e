r"""What an image teacher costs inside a training step, against plain inference of its tower.

    python benchmarks/teacher.py --config=configs/umt_b_k710.py:smoke --tower=B/16 --clips=1

In one run and in turns, on the same frames: the whole step, the same step on targets that are there
already, targets alone, and the tower alone on patches that are cut already. The teacher's cost in
the step is the first less the second. The step is compiled once for every size of chunk.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from vmae_jax import assemble, chips, systems
from vmae_jax import config as config_lib
from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.ops.patches import patchify
from vmae_jax.systems.base import clip_keys, frozen_copy
from vmae_jax.systems.stacks import spec_of, stack_options
from vmae_jax.tools.bench import load_config
from vmae_jax.train.state import make_init
from vmae_jax.train.step import lower_step, make_train_step
from vmae_jax.variants import CLIP_VARIANTS

Run = Callable[[], Any]


def steps_of(config: ConfigDict, batch: Mapping[str, np.ndarray], *, alone: bool) -> dict[str, Run]:
    """The step of a recipe; with `alone` also the step on finished targets, and targets alone."""
    system = systems.build(config)
    run = assemble.make_run(config, config_lib.plan(config, config.train.batch_videos))
    key = jax.random.key(0)
    frozen = frozen_copy(jax.jit(system.init_frozen)(key), system.compute_dtype)

    def stepping(system: systems.System, frozen: Any) -> Run:
        state = [jax.jit(make_init(system.init, run.tx, ema=False))(key)]
        step = make_train_step(system, run.tx, run.schedule, run.options)
        compiled = lower_step(step, state[0], frozen, batch, key).compile()

        def take() -> Any:
            state[0], values = compiled(state[0], frozen, batch, key)
            return values

        return take

    runs = {"step": stepping(system, frozen)}
    if alone:
        looking = jax.jit(
            lambda frozen: system.targets(frozen, batch, clip_keys(key, 0, batch["index"]))
        )
        finished = dataclasses.replace(system, targets=lambda frozen, batch, keys: frozen)
        runs["step on finished targets"] = stepping(finished, looking(frozen))
        runs["targets"] = lambda: looking(frozen)
        runs["tower"] = inference(config, frozen, batch["video"])
    return runs


def inference(config: ConfigDict, frozen: Any, video: np.ndarray) -> Run:
    """The tower on the patches of all frames at once, as one would run it without us."""
    part, tubelet = config.teacher, tuple(config.teacher.tubelet)
    slots, *grid = config_lib.teacher_grid(config)
    places = grid[0] * grid[1]
    options = stack_options(config, "teacher.encoder", tokens=1 + places, chip=chips.local())
    network = functional(
        lambda rngs: ImageTower(
            spec_of(part.encoder),
            options,
            values=config_lib.patch_values(config, tubelet),
            grid=tuple(grid),
            output=part.output,
            rngs=rngs,
        )
    )
    frames = np.zeros((*video.shape[:2], *part.size, video.shape[-1]), np.float32)
    patches = rearrange(
        patchify(jax.numpy.asarray(frames), tubelet), "b (t n) p -> (b t) n p", t=slots
    )
    taps = config_lib.aligned_layers(config, "teacher")
    apply = jax.jit(lambda frozen, patches: network.apply(frozen, patches, taps=taps))
    return lambda: apply(frozen, patches)


def timed(runs: Mapping[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """Least seconds of each, by the clock and of processor time, after one round to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(1 + rounds):
        for name, run in runs.items():
            clock, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if number:
                spent = time.perf_counter() - clock, time.process_time() - processor
                found[name].append(spent)
    return {name: tuple(map(min, zip(*spent, strict=True))) for name, spent in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/umt_b_k710.py:smoke")
    parser.add_argument("--tower", choices=CLIP_VARIANTS, help="default: the recipe's")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="*", default=[4, 1], help="beside all frames")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    config = load_config(args.config).unlock()
    config.train.batch_videos, config.data.repeats, config.optim.accumulate = args.clips, 1, 1
    config.model.dtype = args.dtype
    if args.tower:
        config.teacher.encoder.update(dataclasses.asdict(CLIP_VARIANTS[args.tower]))
    shape = (args.clips, config.data.frames, *config.data.size, config.model.channels)
    batch = {
        "video": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        "index": np.arange(args.clips, dtype=np.int32),
    }
    runs: dict[str, Run] = {}
    for chunk in (0, *args.chunks):
        config.teacher.chunk = chunk
        config_lib.validate(config)
        of_chunk = steps_of(config, batch, alone=not chunk)
        words = f"step, {chunk} frames of a clip at a time" if chunk else "step"
        runs |= {words if name == "step" else name: run for name, run in of_chunk.items()}
    times = timed(runs, args.rounds)
    rest, tower = times["step on finished targets"], times["tower"]
    print(f"{'':38}{'clock s':>9}{'processor s':>13}{'teacher / tower':>17}")
    for name, (clock, processor) in times.items():
        inside = name.startswith("step") and name != "step on finished targets"
        share = f"{(processor - rest[1]) / tower[1]:17.3f}" if inside else ""
        print(f"{name:38}{clock:9.3f}{processor:13.3f}{share}")


if __name__ == "__main__":
    main()
