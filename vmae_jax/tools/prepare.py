r"""Prepares a list of videos for training: small, cheap to decode, in ArrayRecord shards.

    python -m vmae_jax.tools.prepare --manifest=train.csv --root=videos --out=prepared
    python -m vmae_jax.tools.prepare --manifest=train.csv --root=videos --out=frames --format=jpeg

Train from it with --config.data.manifest=prepared. The same command again goes on where the last
one was ended, however it was: whole shards are kept, the rest is made anew. What could not be
prepared is in OUT/report.json and in no shard. The files do not depend on the number of workers.

On a cluster, with Apache Beam (`pip install vmae_jax[prepare]`) and everything in a bucket:
    python -m vmae_jax.tools.prepare --manifest=gs://b/train.csv --root=gs://b/videos \
        --out=gs://b/prepared --runner=beam -- --runner=DataflowRunner --project=...
Without arguments after `--`, Beam's embedded runner is used.
"""

from __future__ import annotations

import argparse
import os
import sys

from tqdm import tqdm

from vmae_jax.data import prepare, records
from vmae_jax.data.folders import DEFAULT_TEMPLATES
from vmae_jax.data.manifest import STYLES
from vmae_jax.data.sources import ListedFiles, open_source
from vmae_jax.data.video import Limits
from vmae_jax.errors import UserError

_SHARD_VIDEOS = 500  # when the number of shards is left open
_EXIT_CODES = """exit codes:
  0    all videos are prepared
  1    some could not be; OUT/report.json names them
  2    the arguments, the list or the folder cannot be used
  130  interrupted; the same command goes on
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments; None: those of the process.

    Returns:
      The exit code; `--help` lists them.
    """
    args, beam_arguments = _parse(argv)
    try:
        report = _prepare(args, beam_arguments)
    except (UserError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    failures = report["failures"]
    print(f"{report['videos']} videos in {args.out}, {report['bytes'] / 2**20:.1f} MiB.")
    for failure in failures[:20]:
        print(f"  not prepared: {failure['name']}: {failure['reason']}")
    if len(failures) > 20:
        print(f"  ... and {len(failures) - 20} more; see report.json")
    return 1 if failures else 0


def _prepare(args: argparse.Namespace, beam_arguments: list[str]) -> dict:
    settings = prepare.Settings(
        args.format, args.short_side, gop=args.gop, crf=args.crf, quality=args.quality
    )
    templates = (("", args.frame_template),) if args.frame_template else DEFAULT_TEMPLATES
    source = open_source(
        args.manifest,
        root=args.root,
        style=args.style,
        allow_outside=args.allow_outside,
        templates=templates,
    )
    if not isinstance(source, ListedFiles):
        raise prepare.PrepareError(
            f"{args.manifest} is a {source.style}; what can be prepared is a list of files."
        )
    jobs = prepare.plan(
        source,
        args.out,
        num_shards=args.shards or -(-len(source) // _SHARD_VIDEOS),
        settings=settings,
        limits=Limits(timeout_s=args.timeout),
    )
    if args.runner == "beam":
        prepare.run_beam(jobs, beam_arguments)
    else:
        with tqdm(total=len(source), unit="video", disable=None) as bar:
            prepare.run_here(jobs, workers=args.workers, progress=bar.update)
    return prepare.finish(jobs, source)


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    given = sys.argv[1:] if argv is None else argv
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m vmae_jax.tools.prepare",
        description=__doc__.splitlines()[0],
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = prepare.Settings()
    parser.add_argument("--manifest", required=True, help="list of videos, local or in a bucket")
    parser.add_argument(
        "--root", default="", help="folder that its paths are relative to (default: its own)"
    )
    parser.add_argument("--out", required=True, help="folder or bucket of the prepared set")
    parser.add_argument(
        "--format", default=defaults.kind, choices=records.KINDS, help="(default: mp4)"
    )
    for name, text in (
        ("short_side", "pixels; larger videos are scaled down to it"),
        ("gop", "mp4: a key frame every so many frames"),
        ("crf", "mp4: constant quality, lower is better"),
        ("quality", "jpeg: of the pictures, 1 to 95"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--shards", type=int, default=0, help=f"files (default: {_SHARD_VIDEOS} videos in each)"
    )
    parser.add_argument(
        "--style", default="auto", choices=("auto", *STYLES), help="of the list (default: auto)"
    )
    parser.add_argument(
        "--allow_outside", action="store_true", help="accept paths outside the root"
    )
    parser.add_argument("--frame_template", help="file name in folders, like img_{number:05d}.jpg")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one video")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument(
        "--runner",
        default="local",
        choices=("local", "beam"),
        help="local: all cores of this machine; beam: what follows -- goes to Apache Beam",
    )
    args = parser.parse_args(given[:split])
    if given[split + 1 :] and args.runner != "beam":
        parser.error("arguments after -- are for --runner=beam")
    if args.workers < 1 or args.timeout <= 0 or args.shards < 0:
        parser.error("--workers and --timeout must be positive, --shards 0 or more")
    return args, given[split + 1 :]


if __name__ == "__main__":
    sys.exit(main())
