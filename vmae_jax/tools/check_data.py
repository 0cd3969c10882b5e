"""Opens every video of a manifest and says what is wrong with which, before a long run finds out.

Run:  python -m vmae_jax.tools.check_data --manifest=train.csv --root=videos --out=clean.csv

Reports missing, corrupt and too short videos and files without video, the distributions of frame
rate, size, length and class; writes a JSON report and a manifest of the good rows in the style of
the one read.

Each video is opened in a worker process, its packets are counted, its first and last usable frames
are decoded; with --full_decode all frames are. A file that crashes or hangs the decoder costs a
worker process and is reported as corrupt.

Exit codes: 0, all rows are good; 1, some are not; 2, the arguments or the list cannot be used, or a
result cannot be written; 130, interrupted.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vmae_jax.data import guard as guards
from vmae_jax.data.folders import DEFAULT_TEMPLATES
from vmae_jax.data.manifest import STYLES, Manifest
from vmae_jax.data.source import Source
from vmae_jax.data.sources import ListedFiles, open_source
from vmae_jax.data.stored import EncodedVideo
from vmae_jax.data.video import Limits, VideoError, count_frames, probe
from vmae_jax.errors import UserError

_IN_FLIGHT = 4  # tasks queued per worker
# Of this process, if it is a worker.
_guard: guards.Guard | None = None
_task: _Task | None = None
_EXIT_CODES = """exit codes:
  0    all rows are good
  1    some rows have a problem
  2    the arguments or the list cannot be used, or a result cannot be written
  130  interrupted
"""


class CheckError(UserError):
    """Something that cannot be done with this source."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments; None: those of the process.

    Returns:
      The exit code; see the top of this file.
    """
    args = _parse(argv)
    try:
        report = _report(args)
    except (UserError, OSError) as error:
        print(f"check_data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("check_data: interrupted.", file=sys.stderr)
        return 130
    print(describe(report))
    return 1 if report["problems"] else 0


def _report(args: argparse.Namespace) -> dict:
    """Examines the list and writes what is asked for."""
    source = open_source(
        args.manifest,
        root=args.root,
        style=args.style,
        allow_outside=args.allow_outside,
        templates=(("", args.frame_template),) if args.frame_template else DEFAULT_TEMPLATES,
    )
    if args.out and not isinstance(source, ListedFiles):
        raise CheckError(
            f"--out writes a cleaned list, but {args.manifest} is a {source.style}; leave it out."
        )
    findings = check(
        source,
        min_frames=args.min_frames,
        full_decode=args.full_decode,
        timeout_s=args.timeout,
        workers=args.workers,
    )
    report = summarise(source, findings)
    report["manifest"] = str(args.manifest)
    if args.out:
        report["clean"] = write_clean(source.manifest, findings, args.manifest, args.out)
    if args.report:
        _write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def check(
    source: Source,
    *,
    min_frames: int,
    full_decode: bool,
    timeout_s: float,
    workers: int,
) -> list[dict]:
    """Examines every video in parallel.

    Returns:
      One dict a video, in order: `problem` (None, "missing", "no_video", "corrupt", "short"),
      `reason`, and, as far as known, `frames`, `fps`, `width`, `height`, `duration_s`, `codec`,
      `label`, `warnings`.
    """
    findings: list[dict | None] = [None] * len(source)
    task = _Task(source, min_frames, full_decode, timeout_s)
    with tqdm(total=len(source), unit="video", disable=None) as bar:
        todo = list(range(len(source)))
        while todo:
            for i, finding in _run(todo, task, workers):
                findings[i] = finding
                bar.update()
            left = [i for i in todo if findings[i] is None]
            # A worker died. What was being examined goes one at a time, so that only the culprit
            # is blamed; the rest goes on as before.
            for i in left[: workers * _IN_FLIGHT]:
                alone = dict(_run([i], task, 1))
                findings[i] = alone.get(i) or {
                    "problem": "corrupt",
                    "reason": "crashes the decoder, or makes it hang",
                }
                bar.update()
            todo = [i for i in left if findings[i] is None]
    return findings


def _run(rows: list[int], task: _Task, workers: int) -> Iterator[tuple[int, dict]]:
    """Yields findings until all rows are done or a worker dies."""
    folder = Path(tempfile.mkdtemp(prefix="vmae_check_"))
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(
        min(workers, len(rows)),
        mp_context=context,
        initializer=_enter_worker,
        initargs=(folder, task, os.getpid()),
    )
    try:
        pending: dict[futures.Future, int] = {}
        queue = iter(rows)
        while True:
            while len(pending) < workers * _IN_FLIGHT and (i := next(queue, None)) is not None:
                pending[pool.submit(_examine, i)] = i
            if not pending:
                return
            done, _ = futures.wait(pending, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)


def _enter_worker(folder: Path, task: _Task, parent: int) -> None:
    global _guard, _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it for all
    _guard = guards.enter(folder, os.getpid(), clip_timeout_s=task.timeout_s, parent=parent)
    _task = task


def _examine(i: int) -> dict:
    with _guard.clip(_task.source.where(i)):
        return _task(i)


@dataclass(frozen=True)
class _Task:
    """Examines videos in a worker."""

    source: Source
    min_frames: int
    full_decode: bool
    timeout_s: float

    def __call__(self, i: int) -> dict:
        found: dict = {"problem": None, "reason": ""}
        try:
            self._look(i, found)
        except VideoError as error:
            found.update(problem=_kind(error.reason), reason=error.reason)
        except Exception as error:  # an odd file must not end the examination of the others
            found.update(problem="corrupt", reason=f"{type(error).__name__}: {error}")
        if found["problem"] is None and found["frames"] < self.min_frames:
            found["problem"] = "short"
            found["reason"] = f"{found['frames']} frames, {self.min_frames} wanted"
        return found

    def _look(self, i: int, found: dict) -> None:
        limits = Limits(timeout_s=self.timeout_s)

        def ends(num_frames: int, _fps: float) -> list[int]:
            found["frames"] = num_frames
            return [0, num_frames - 1]

        stored = self.source.fetch(i, limits)
        found["label"] = stored.label
        if not isinstance(stored, EncodedVideo):
            picture = stored.read(ends, limits)
            found.update(height=picture.shape[1], width=picture.shape[2])
            for frame in range(found["frames"]) if self.full_decode else ():
                stored.read([frame], limits)  # one at a time: a folder may be long
            return
        info = probe(stored.data, limits, name=stored.where)
        found.update(
            fps=round(info.fps, 3),
            width=info.width,
            height=info.height,
            duration_s=round(info.duration_s, 3),
            codec=info.codec,
            warnings=list(info.warnings),
        )
        stored.read(ends, limits)
        if self.full_decode:
            counted = count_frames(stored.data, limits, name=stored.where)
            if counted != info.num_frames:
                found["warnings"].append(
                    f"{counted} frames decode, the packets promise {info.num_frames}"
                )


def _kind(reason: str) -> str:
    if "does not exist" in reason:
        return "missing"
    return "no_video" if "no video stream" in reason else "corrupt"


def summarise(source: Source, findings: list[dict]) -> dict:
    """Counts and distributions, ready for JSON."""
    problems = [
        {"row": i, "path": source.name(i), "kind": found["problem"], "reason": found["reason"]}
        for i, found in enumerate(findings)
        if found["problem"]
    ]
    warnings = [
        {"row": i, "path": source.name(i), "warnings": found["warnings"]}
        for i, found in enumerate(findings)
        if found.get("warnings")
    ]
    good = [found for found in findings if not found["problem"]]
    return {
        "manifest_sha256": source.sha256,
        "style": source.style,
        "videos": len(findings),
        "good": len(good),
        "problem_counts": dict(collections.Counter(p["kind"] for p in problems)),
        "problems": problems,
        "warnings": warnings,
        "frames": _quantiles(good, "frames"),
        "duration_s": _quantiles(good, "duration_s"),
        "fps": _counts(f"{found['fps']:g}" for found in good if "fps" in found),
        "size": _counts(f"{f['width']}x{f['height']}" for f in good if "width" in f),
        "codec": _counts(found["codec"] for found in good if "codec" in found),
        "num_classes": source.num_classes,
        "classes": _classes(source, good),
    }


def _counts(values) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _quantiles(found: list[dict], key: str) -> dict[str, float] | None:
    values = [f[key] for f in found if key in f]
    if not values:
        return None
    names, points = ("min", "p5", "median", "p95", "max"), (0, 5, 50, 95, 100)
    return dict(zip(names, np.percentile(values, points).round(3).tolist(), strict=True))


def _classes(source: Source, good: list[dict]) -> dict[str, int]:
    """Good videos per class, by name if there are names; also the classes that have none."""
    counts = collections.Counter(found["label"] for found in good)
    names = source.class_names or tuple(map(str, range(source.num_classes)))
    result = {name: counts[i] for i, name in enumerate(names)}
    return result | ({"no label": counts[-1]} if counts[-1] else {})


def describe(report: dict, most: int = 20) -> str:
    """The report as text for a terminal."""
    lines = [f"{report['good']} of {report['videos']} videos are good."]
    for kind, count in report["problem_counts"].items():
        lines.append(f"  {kind}: {count}")
    for problem in report["problems"][:most]:
        lines.append(f"    {problem['kind']:8} {problem['path']}: {problem['reason']}")
    if len(report["problems"]) > most:
        lines.append(f"    ... and {len(report['problems']) - most} more; see --report")
    if report["warnings"]:
        lines.append(f"  with warnings: {len(report['warnings'])}; see --report")
    for key in ("frames", "duration_s"):
        if report[key]:
            lines.append(f"{key}: " + ", ".join(f"{k} {v:g}" for k, v in report[key].items()))
    for key in ("fps", "size", "codec"):
        shown = list(report[key].items())[:6]
        rest = len(report[key]) - len(shown)
        text = ", ".join(f"{value} ({count})" for value, count in shown)
        lines.append(f"{key}: {text}" + (f", {rest} more" if rest > 0 else ""))
    classes = report["classes"]
    lines.append(f"classes: {report['num_classes']}")
    for name, count in list(classes.items())[:most]:
        lines.append(f"  {name}: {count}")
    if len(classes) > most:
        lines.append(f"  ... and {len(classes) - most} more; see --report")
    lines.append(f"sha256 of the manifest: {report['manifest_sha256']}")
    if "clean" in report:
        clean = report["clean"]
        lines.append(f"Wrote {clean['path']}: {clean['videos']} videos, sha256 {clean['sha256']}")
    return "\n".join(lines)


def write_clean(
    manifest: Manifest, findings: list[dict], source: str | Path, out: str | Path
) -> dict:
    """Writes the good rows in the manifest's style, and the class names beside them."""
    rows = [i for i, found in enumerate(findings) if not found["problem"]]
    text = io.StringIO(newline="")
    if manifest.style == "csv":
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "start", "end"])
        for i in rows:
            clip = manifest[i]
            label = "" if clip.label < 0 else clip.label
            times = ["" if t is None or math.isnan(t) else repr(t) for t in (clip.start, clip.end)]
            writer.writerow([manifest.name(i), label, *times])
    else:
        for i in rows:
            clip = manifest[i]
            numbers = (
                (clip.label,)
                if manifest.style == "path_label"
                else (clip.first_frame, clip.total_frames)
            )
            text.write(" ".join(map(str, (manifest.name(i), *numbers))) + "\n")
    _write_text(out, text.getvalue())
    names = Path(source).with_name("classes.txt")
    if names.is_file() and not Path(out).with_name("classes.txt").exists():
        shutil.copyfile(names, Path(out).with_name("classes.txt"))
    digest = hashlib.sha256(text.getvalue().encode()).hexdigest()
    return {"path": str(out), "videos": len(rows), "sha256": digest}


def _write_text(path: str | Path, text: str) -> None:
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vmae_jax.tools.check_data",
        description=__doc__.splitlines()[0],
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, help="list of videos")
    parser.add_argument(
        "--root", default="", help="folder that its paths are relative to (default: its own)"
    )
    parser.add_argument(
        "--style", default="auto", choices=("auto", *STYLES), help="of the list (default: auto)"
    )
    parser.add_argument(
        "--allow_outside", action="store_true", help="accept paths outside the root"
    )
    parser.add_argument("--frame_template", help="file name in folders, like img_{number:05d}.jpg")
    parser.add_argument("--min_frames", type=int, default=16, help="fewer are a problem: short")
    parser.add_argument("--full_decode", action="store_true", help="decode every frame")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one video")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument("--out", help="where to write the manifest of good rows")
    parser.add_argument("--report", help="where to write the JSON report")
    args = parser.parse_args(argv)
    for name in ("workers", "min_frames", "timeout"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} must be positive")
    for name in ("out", "report"):  # said now, not after hours of reading
        if (path := getattr(args, name)) and not Path(path).parent.is_dir():
            parser.error(f"--{name}: the folder {Path(path).parent} does not exist")
    if args.frame_template:
        try:
            args.frame_template.format(1, number=1, folder="folder")
        except (LookupError, ValueError) as error:
            parser.error(
                f"--frame_template={args.frame_template!r} cannot be filled in ({error!r}); it may "
                "hold {number} and {folder}, like img_{number:05d}.jpg"
            )
    return args


if __name__ == "__main__":
    sys.exit(main())
