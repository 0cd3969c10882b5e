r"""Does pretraining help? The same fine-tuning budget from scratch and from our own pretraining.

    python benchmarks/learning/run.py --set=actions --train=train.csv --val=val.csv \
        --group=^dark_ --group=^tennis_ --out=runs/learning
    python benchmarks/learning/run.py --set=motion --train=runs/motion/train.csv \
        --val=runs/motion/val.csv --out=runs/motion_learning

Pretrains once on the training part, fine-tunes from it and from random weights with the same seeds,
tests each by several views, and lets probes judge the frozen encoder beside random ones (the best
setting of each, chosen on the held-out videos themselves). What is there is not done again. Writes
OUT/summary.json and OUT/curves.png; figures of ours are in benchmarks/RESULTS.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = pathlib.Path(__file__).resolve().parent
RECIPES = {
    "actions": ("pretrain", "finetune"),
    "motion": ("motion_pretrain", "motion_finetune"),
}
STARTS = ("pretrained", "scratch")


def call(module: str, *flags: str) -> None:
    """Runs a command of the package; its errors end this script."""
    subprocess.run([sys.executable, "-m", f"vmae_jax.{module}", *flags], check=True)


def train(recipe: str, workdir: pathlib.Path, *flags: str) -> None:
    """Trains, or goes on; a finished run costs seconds."""
    call("main", f"--config={HERE / recipe}.py", f"--workdir={workdir}", *flags)


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Logged rows of a run that have a loss."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("loss") is not None]


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample) and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation, "values": values}


def draw(path: pathlib.Path, out: pathlib.Path, seeds: int) -> None:
    """Losses of pretraining and of all fine-tuning runs."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    curve = rows(out / "pretrain")
    left.plot([row["step"] for row in curve], [row["loss"] for row in curve], color="C0")
    left.set(title="pretraining", xlabel="step", ylabel="loss")
    for colour, start in zip(("C0", "C1"), STARTS, strict=True):
        for seed in range(seeds):
            curve = rows(out / f"{start}_{seed}")
            steps, losses = zip(*((row["step"], row["loss"]) for row in curve), strict=True)
            label = start if seed == 0 else None
            right.plot(steps, losses, color=colour, alpha=0.7, label=label)
    right.set(title="fine-tuning", xlabel="step", ylabel="loss")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=sorted(RECIPES), required=True)
    parser.add_argument("--train", required=True, help="list to learn from")
    parser.add_argument("--val", required=True, help="list to test on")
    parser.add_argument("--group", action="append", default=[], help="regex on class names")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    began = time.perf_counter()
    pretraining, finetuning = RECIPES[args.set]
    data = f"--config.data.manifest={args.train}"
    train(pretraining, args.out / "pretrain", data)
    tested: dict[str, list[dict]] = {start: [] for start in STARTS}
    for seed in range(args.seeds):
        for start in STARTS:
            workdir = args.out / f"{start}_{seed}"
            flags = [data, f"--config.seed={seed}"]
            if start == "pretrained":
                flags.append(f"--config.init_from={args.out / 'pretrain'}")
            train(finetuning, workdir, *flags)
            result = workdir / "test" / "result.json"
            if not result.is_file():
                groups = [f"--group={group}" for group in args.group]
                where = [f"--weights={workdir}", f"--manifest={args.val}", f"--out={result.parent}"]
                call("tools.evaluate", *where, *groups)
            facts = json.loads(result.read_text(encoding="utf-8"))
            apart = {pattern: group["top1"] for pattern, group in facts["groups"].items()}
            tested[start].append({**facts["metrics"], **apart})
    probed: dict[str, list[dict]] = {"weights": [], "random": []}
    for seed in range(args.seeds):
        found = args.out / f"probes_{seed}.json"
        if not found.is_file():
            sets = [f"--train={args.train}", f"--val={args.val}", f"--seed={seed}"]
            kinds = ["--probes=knn,linear,attentive", "--against_random", f"--out={found}"]
            call("tools.probe", f"--weights={args.out / 'pretrain'}", *sets, *kinds)
        for start, scores in json.loads(found.read_text(encoding="utf-8"))["scores"].items():
            best = {kind: max(s["top1"] for s in each.values()) for kind, each in scores.items()}
            probed[start].append(best)
    summary = {
        start: {name: spread([m[name] for m in found]) for name in found[0]}
        for start, found in (tested | {f"probes of {k}": v for k, v in probed.items()}).items()
    }
    summary["seconds"] = time.perf_counter() - began
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(args.out / "curves.png", args.out, args.seeds)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
