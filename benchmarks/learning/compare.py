r"""All pretraining systems at equal encoder FLOPs on the same videos: what the probes say of each.

    python benchmarks/learning/compare.py --train=train.csv --val=val.csv \
        --group=^dark_ --group=^tennis_ --teacher=runs/tower.safetensors --out=runs/compare

Each system of benchmarks/learning/small.py is trained until its encoder (patch embedding and
blocks, forward and backward) has taken `--teraflops`; its step is timed on random clips; probes
judge the frozen encoder beside one of random weights (best setting of each, chosen on the held-out
videos themselves). What is there is not done again. Writes OUT/table.md; figures of ours are in
benchmarks/RESULTS.md.
"""

import argparse
import json
import pathlib

from run import call, rows, spread

from vmae_jax import systems
from vmae_jax.tools.bench import load_config

RECIPES = pathlib.Path(__file__).resolve().with_name("small.py")
NAMES = ("videomae", "videomae_v2", "mae_st", "maskfeat", "umt")
PROBES = ("knn", "linear")
# What is thrown away after pretraining, or was never trained.
NOT_THE_ENCODER = ("encoder_to_decoder", "decoder", "head", "align", "teacher")


def encoder_flops(recipe: str) -> float:
    """FLOPs that the encoder takes in one training step."""
    config = load_config(recipe)
    macs = systems.build(config).macs
    encoder = sum(value for part, value in macs.items() if part not in NOT_THE_ENCODER)
    return 6 * encoder * config.train.batch_videos * config.data.repeats


def best(path: pathlib.Path, start: str, kind: str, figure: str) -> float:
    """The best setting's figure ("top1", "top1 GROUP") of a probe, in %."""
    settings = json.loads(path.read_text(encoding="utf-8"))["scores"][start][kind]
    return 100 * max(scores[figure] for scores in settings.values())


def row(name: str, args: argparse.Namespace) -> dict[str, str]:
    """Trains, times and probes one system; one line of the table."""
    recipe, out = f"{RECIPES}:{name}", args.out / name
    steps = round(args.teraflops * 1e12 / encoder_flops(recipe))
    call(
        "main",
        f"--config={recipe}",
        f"--config.data.manifest={args.train}",
        f"--config.train.steps={steps}",
        f"--workdir={out}",
        *([f"--config.teacher.weights={args.teacher}"] if name == "umt" else []),
    )
    timing = out / "bench.jsonl"
    if not timing.is_file():
        clips = str(load_config(recipe).train.batch_videos)
        call("tools.bench", "step", f"--config={recipe}", f"--clips={clips}", f"--json={timing}")
    facts = json.loads(timing.read_text(encoding="utf-8"))
    probes = [out / f"probes_{seed}.json" for seed in range(args.seeds)]
    for seed, scores in enumerate(probes):
        if not scores.is_file():
            sets = [f"--train={args.train}", f"--val={args.val}", f"--seed={seed}"]
            kinds = [f"--probes={','.join(PROBES)}", "--against_random", f"--out={scores}"]
            groups = [f"--group={group}" for group in args.group]
            call("tools.probe", f"--weights={out}", *sets, *kinds, *groups)
    curve = rows(out)
    line = {
        "system": name,
        "steps": str(steps),
        "loss": f"{curve[0]['loss']:.3f} to {curve[-1]['loss']:.3f}",
    }
    for kind in PROBES:
        for group in ("", *args.group):
            figure = f"top1 {group}".strip()
            ours, random = (
                spread([best(scores, start, kind, figure) for scores in probes])
                for start in ("weights", "random")
            )
            line[f"{kind} {group}".strip()] = f"{shown(ours)} ({shown(random)})"
    line["GMACs a clip, forward"] = f"{facts['gmac_forward_per_clip']:.3f}"
    line["clips/s"] = f"{facts['clips_per_s_per_chip']:.1f}"
    line["memory, GiB"] = f"{facts['memory_gib']:.2f}"
    return line


def shown(found: dict) -> str:
    """Mean, and the deviation where there is one."""
    more = f" +- {found['deviation']:.1f}" if len(found["values"]) > 1 else ""
    return f"{found['mean']:.1f}{more}"


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="list to learn from")
    parser.add_argument("--val", required=True, help="list to test on")
    parser.add_argument("--group", action="append", default=[], help="regex on class names")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--teraflops", type=float, default=5.0, help="of each encoder, in all")
    parser.add_argument("--systems", default=",".join(NAMES))
    parser.add_argument("--teacher", default="", help="of umt: what image_tower.py has written")
    parser.add_argument("--seeds", type=int, default=1, help="of the probes and random weights")
    args = parser.parse_args()
    lines = [row(name, args) for name in args.systems.split(",")]
    table = [" | ".join(lines[0]), " | ".join("---" for _ in lines[0])]
    table += [" | ".join(line.values()) for line in lines]
    text = "".join(f"| {line} |\n" for line in table)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
