r"""Where the time of a training step goes, part by part, read off a trace of the running program.

    JAX_PLATFORMS=cpu taskset -c 0 python benchmarks/step_parts.py \
        --config=configs/maskfeat_s_16x4_k400.py --clips=1 --size=96 --dtype=float32

On CPUs it wants one core: with several, the trace says when a matrix product was handed out, not
when it ended. Prints a table (milliseconds of a step and shares, forward and backward together;
the shortest of the traced steps), and how much of the step's time the operations add up to.
"""

import argparse
import collections
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator

import jax

from vmae_jax import rules
from vmae_jax.planning.hlo import Program
from vmae_jax.tools.bench import LiveStep, load_config, provenance

# The first that is found in the path of named scopes; inner ones come first.
PARTS = (
    (r"\bnorm\b", "norms"),
    (r"\bpositions\b", "relative positions"),
    (r"\bpooling\b", "pooling"),
    (r"\battention\b", "attention between queries and keys"),
    (r"\bmlp\b", "MLP"),
    (r"\bstem\b", "stem"),
    (r"\btargets\b", "targets and masks"),
    (r"\bupdate\b", "optimizer"),
    (r"\bencoder\b", "other of the encoder"),  # projections of attention, skip paths
    (r"\bdecoder\b", "other of the decoder"),
    (r"", "other"),
)
CONTAINERS = ("while", "conditional", "call")  # their time is that of what they hold


def operations(trace: pathlib.Path) -> Iterator[tuple[str, float]]:
    """(name in the compiled program, milliseconds) of every operation that a trace recorded."""
    (file,) = trace.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if name := dict(event.stats).get("hlo_op"):
                    yield str(name), event.duration_ns / 1e6


def parts_of(program: Program) -> dict[str, str]:
    """Name of each operation that computes something -> the part of the step that it belongs to."""
    sources, parts = {}, {}
    for instruction in reversed(list(program.instructions())):  # users before what they use
        # Matrix products do not say where they come from on CPUs, but who takes their results does.
        source = instruction.source or sources.get(instruction.name, "")
        sources |= dict.fromkeys(re.findall(r"%([\w.\-]+)", instruction.rest), source)
        if instruction.opcode not in CONTAINERS:
            parts[instruction.name] = rules.match(PARTS, source)
    return parts


def measure(step: LiveStep, *, steps: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step by the clock, and of its parts; those of the shortest step."""
    parts = parts_of(Program(step.compiled.as_text()))
    step.run()
    measured = []
    for _ in range(steps):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                begin = time.perf_counter()
                step.run()
                took = 1e3 * (time.perf_counter() - begin)
            sums = collections.Counter()
            for name, ms in operations(pathlib.Path(folder)):
                if name in parts:
                    sums[parts[name]] += ms
        measured.append((took, dict(sums)))
    return min(measured, key=lambda one: one[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="recipe, e.g. configs/v2_vitb.py")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, help="default: the recipe's")
    parser.add_argument("--size", type=int, help="height and width; default: the recipe's")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=3, help="traced")
    args = parser.parse_args()
    config = load_config(args.config).unlock()
    config.train.batch_videos, config.data.repeats = args.clips, 1
    config.model.dtype = args.dtype or config.model.dtype
    config.data.frames = args.frames or config.data.frames
    config.data.size = (args.size, args.size) if args.size else config.data.size
    step = LiveStep(config, clips=args.clips)
    took, parts = measure(step, steps=args.steps)
    total = sum(parts.values())
    print("| part | ms | share |\n|---|---|---|")
    for part, ms in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {part} | {ms:.1f} | {ms / total:.1%} |")
    print(f"| all operations; step {took:.0f} | {total:.0f} | |")
    facts = provenance()
    print(f"compiled in {step.compile_s:.0f} s; {facts['cpu']}, commit {facts['commit']}")


if __name__ == "__main__":
    main()
