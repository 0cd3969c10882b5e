r"""MAE-ST's speed claim: the time of a training step at several mask ratios, all else equal.

    python benchmarks/mask_ratio.py --config=configs/mae_st_l_k400.py --clips=8 --plot=ratios.png
    python benchmarks/mask_ratio.py --config=configs/mae_st_b_k400.py --clips=2 --size=112 \
        --dtype=float32

Ratio 0 is the dense encoder of the paper's table 1: mask tokens take the places of the 90 % that
are hidden, so that the encoder computes all tokens. Steps of all ratios take turns, round by round,
so that what else a machine does falls on all of them alike. Prints a table: seconds of a step
(median of the rounds), its processor time where the processor is the device, and how much faster
than dense that is, measured and by counted multiply-accumulates.

Source: MAE-ST (arXiv:2205.09113), table 1: 5.8x less time for the step at 90 %, 7.7x fewer MACs.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vmae_jax import config as config_lib
from vmae_jax.tools.bench import LiveStep, load_config, provenance

RATIOS = (0.0, 0.5, 0.75, 0.9, 0.95)
DENSE_HIDES = 0.9  # what is predicted of the tokens that the dense encoder sees
PAPER = {0.9: 5.8}  # times faster than dense, data loading not counted


def at_ratio(config: ConfigDict, ratio: float) -> ConfigDict:
    """The recipe with another mask ratio; 0 for the dense encoder."""
    config = config.copy_and_resolve_references().unlock()
    config.masking.encoder = (config.masking.encoder[0], ratio or DENSE_HIDES)
    config.masking.mask_tokens = "decoder" if ratio else "encoder"
    config_lib.validate(config)
    return config


def measure(config: ConfigDict, *, clips: int, rounds: int) -> list[dict[str, Any]]:
    """One row of figures for each ratio."""
    configs = {ratio: at_ratio(config, ratio) for ratio in RATIOS}
    steps = {ratio: LiveStep(one, clips=clips) for ratio, one in configs.items()}
    seconds = {ratio: [] for ratio in RATIOS}
    for step in steps.values():  # warm-up
        step.run()
    for _ in range(rounds):
        for ratio, step in steps.items():
            begin, cpu_begin = time.perf_counter(), time.process_time()
            step.run()
            took = time.perf_counter() - begin, time.process_time() - cpu_begin
            seconds[ratio].append(took)
    rows = []
    for ratio, step in steps.items():
        wall, cpu = np.median(seconds[ratio], axis=0)
        counts = config_lib.token_counts(configs[ratio])
        encoded = counts.visible if ratio else counts.visible + counts.targets
        macs = sum(step.system.macs.values())
        rows.append(
            {"ratio": ratio, "tokens": encoded, "gmac": macs / 1e9, "step_s": wall, "cpu_s": cpu}
        )
    timed = "cpu_s" if jax.default_backend() == "cpu" else "step_s"
    for row in rows:
        row["speed"] = rows[0][timed] / row[timed]
        row["speed_by_macs"] = rows[0]["gmac"] / row["gmac"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| mask ratio | tokens in the encoder | GMAC a clip, forward | step, s | processor, s "
        "| times faster than dense | by MACs | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row['ratio']:.0%}" if row["ratio"] else "dense (0%)"
        paper = f"{PAPER[row['ratio']]}" if row["ratio"] in PAPER else ""
        lines.append(
            f"| {name} | {row['tokens']} | {row['gmac']:.1f} | {row['step_s']:.2f} "
            f"| {row['cpu_s']:.2f} | {row['speed']:.2f} | {row['speed_by_macs']:.2f} | {paper} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws how much faster than dense each ratio is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    ratios = [100 * row["ratio"] for row in rows]
    axes.plot(ratios, [row["speed_by_macs"] for row in rows], "--", color="grey", label="by MACs")
    axes.plot(ratios, [row["speed"] for row in rows], "o-", label="measured")
    paper = {100 * ratio: times for ratio, times in PAPER.items()}
    axes.plot(paper.keys(), paper.values(), "x", color="black", label="paper, ViT-L")
    axes.set(xlabel="mask ratio, %", ylabel="times faster than dense", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a recipe of MAE-ST's pretraining")
    parser.add_argument("--clips", type=int, default=8, help="per step, over all devices")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each ratio")
    parser.add_argument("--size", type=int, help="height and width; default: the recipe's")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: the recipe's")
    parser.add_argument("--json", help="append the figures, as one line, to this file")
    parser.add_argument("--plot", help="PNG to draw (needs matplotlib)")
    args = parser.parse_args()
    config = load_config(args.config).unlock()
    config.train.batch_videos, config.data.repeats = args.clips, 1
    config.model.dtype = args.dtype or config.model.dtype
    config.data.size = (args.size, args.size) if args.size else config.data.size
    rows = measure(config, clips=args.clips, rounds=args.rounds)
    print(table(rows))
    facts = provenance()
    print(f"{facts['device']}, {facts['cpu']}, commit {facts['commit']}")
    if args.json:
        with pathlib.Path(args.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"config": args.config, "rows": rows, **facts}) + "\n")
    if args.plot:
        plot(rows, pathlib.Path(args.plot))


if __name__ == "__main__":
    main()
