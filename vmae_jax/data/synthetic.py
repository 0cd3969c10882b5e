"""Writes a small labelled set of real video files, for the demo and for tests.

What they show is in `moving_shapes.py`. The files are H.264, in several sizes and frame rates, and
are read back by the same code as any other set.

    python -m vmae_jax.data.synthetic --out=runs/demo_videos

writes `videos/<class>/<number>.mp4`, `train.csv` and `val.csv` (`path,label`) and `classes.txt`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vmae_jax.data.moving_shapes import CLASSES, draw_video
from vmae_jax.data.video import write_video

KEY_FRAME_EVERY = 16


def generate(
    out: str | Path, *, num_videos: int = 240, seed: int = 0, num_workers: int = 0
) -> Path:
    """Writes the set into a folder; files that are already there are kept, so a broken run goes on.

    Args:
      out: the folder; made if missing.
      num_videos: videos in all, classes in turn; the last eighth (at least one) goes to `val.csv`.
      seed: another seed draws other videos.
      num_workers: processes that draw and encode; 0: this one. The files do not depend on it.

    Returns:
      The folder.

    Raises:
      ValueError: fewer than two videos, or the folder holds a set of another seed.
    """
    if num_videos < 2:
        raise ValueError(
            f"num_videos={num_videos}: one to train on and one to validate are the least."
        )
    out = Path(out)
    _claim_folder(out, seed)
    paths = [video_path(index) for index in range(num_videos)]
    for name in CLASSES:
        (out / "videos" / name).mkdir(parents=True, exist_ok=True)
    missing = [index for index, path in enumerate(paths) if not (out / path).exists()]
    if missing:
        _write_videos(out, missing, seed=seed, num_workers=num_workers)
    rows = [(path, index % len(CLASSES)) for index, path in enumerate(paths)]
    num_val = max(1, num_videos // 8)
    _write_atomically(out / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    _write_atomically(out / "val.csv", _manifest(rows[-num_val:]))
    _write_atomically(out / "train.csv", _manifest(rows[:-num_val]))
    return out


def video_path(index: int) -> str:
    """Returns where video `index` lies below the folder of the set."""
    return f"videos/{CLASSES[index % len(CLASSES)]}/{index:05d}.mp4"


def _claim_folder(out: Path, seed: int) -> None:
    """Writes down the seed of a new folder; refuses a folder of another seed."""
    note = out / "synthetic.json"
    facts = {"generator": 1, "seed": seed}
    if note.exists():
        found = json.loads(note.read_text())
        if found != facts:
            raise ValueError(
                f"{out} holds a set made with {found}, asked for is {facts}. "
                "Name another folder, or delete this one."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    _write_atomically(note, json.dumps(facts) + "\n")


def _write_videos(out: Path, indices: Iterable[int], *, seed: int, num_workers: int) -> None:
    write = partial(_write_one, out=out, seed=seed)
    bar = partial(tqdm, desc="Drawing videos", unit="video", total=len(indices), disable=None)
    if num_workers == 0:
        for _ in bar(map(write, indices)):
            pass
        return
    # spawn: the caller may run threads (JAX does), and a forked copy of those can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        for _ in bar(pool.map(write, indices, chunksize=4)):
            pass


def _write_one(index: int, *, out: Path, seed: int) -> None:
    frames, fps = draw_video(index, seed=seed)
    write_video(out / video_path(index), frames, fps=fps, gop=KEY_FRAME_EVERY)


def _manifest(rows: Iterable[tuple[str, int]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    writer.writerows(rows)
    return text.getvalue()


def _write_atomically(path: Path, text: str) -> None:
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_text(text, encoding="utf-8")
    partial_path.replace(path)


def main() -> None:
    """Runs the command line: draws a set into the folder `--out`."""
    parser = argparse.ArgumentParser(
        prog="python -m vmae_jax.data.synthetic",
        description="Draws a small labelled set of real video files.",
    )
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--videos", type=int, default=240, help="videos in all (default: 240)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other videos")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2; 0: none)")
    args = parser.parse_args()
    out = generate(args.out, num_videos=args.videos, seed=args.seed, num_workers=args.workers)
    print(f"{args.videos} videos of {len(CLASSES)} kinds of motion: {out}")


if __name__ == "__main__":
    main()
