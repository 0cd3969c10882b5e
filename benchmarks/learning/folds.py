"""Cuts a list of videos into parts for cross-validation, each with its share of every class.

    python benchmarks/learning/folds.py --list=train.csv --out=runs/folds

Writes OUT/train0.csv, OUT/val0.csv and so on, lines as they came; every video is tested in one of
them. Their root is the list's own folder (`--config.data.root`).
"""

import argparse
import pathlib
import random


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", required=True, type=pathlib.Path, help="lines: path label")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--folds", type=int, default=3)
    args = parser.parse_args()
    by_label: dict[str, list[str]] = {}
    for line in filter(str.strip, args.list.read_text(encoding="utf-8").splitlines()):
        by_label.setdefault(line.split()[-1], []).append(line)
    draw, parts = random.Random(0), [[] for _ in range(args.folds)]
    for _, lines in sorted(by_label.items(), key=lambda item: int(item[0])):
        draw.shuffle(lines)
        for i, line in enumerate(lines):
            parts[i % args.folds].append(line)
    args.out.mkdir(parents=True, exist_ok=True)
    for fold, held_out in enumerate(parts):
        others = [line for part in parts if part is not held_out for line in part]
        for name, lines in (("train", others), ("val", held_out)):
            text = "".join(f"{line}\n" for line in sorted(lines))
            (args.out / f"{name}{fold}.csv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
