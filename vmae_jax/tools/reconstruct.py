r"""Shows what a masked model reconstructs, on any video.

    python -m vmae_jax.tools.reconstruct --workdir=runs/demo --out=pictures
    python -m vmae_jax.tools.reconstruct --workdir=runs/demo --out=pictures a.mp4 b.mp4
    python -m vmae_jax.tools.reconstruct --workdir=runs/demo --out=pictures --manifest=val.csv
    python -m vmae_jax.tools.reconstruct --weights=released.pth --out=pictures a.mp4

Writes one picture of all clips (reconstructions.png) and, for each clip, its videos side by side
as mp4 and GIF. A prediction that borrows statistics of the true patches says so in its label. What
learns from a teacher is drawn beside it: the weights that the run names must still be there.
"""

import argparse
import csv
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.data.video import write_video
from vmae_jax.errors import UserError
from vmae_jax.evals.reconstruct import grid_picture, make_reconstruct, side_by_side

_FRAMES_PER_SECOND = 6  # slow enough to look at


def reconstruct(
    model: assemble.Model, *, videos: Sequence[str], num_clips: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reconstructs clips of given videos, or of the config's manifest.

    Args:
      model: a pretraining network.
      videos: files to take one clip of each; empty: the first clips of the manifest.
      num_clips: how many, where no videos are given.

    Returns:
      ({label: uint8 [B, T, H, W, C]}, names of the B clips).

    Raises:
      ConfigError: a network that predicts no pictures.
    """
    if model.system.reconstruct is None:
        raise config_lib.ConfigError(
            f"a model of the system {model.config.system!r} predicts no pictures; give the "
            "weights of a pretraining network"
        )
    batch, names = _clips(model.config, videos, num_clips)
    key = jax.random.key(model.config.seed)
    frozen = assemble.open_frozen(model.config, model.system)
    return make_reconstruct(model.system)(model.params, frozen, batch, key), names


def _clips(
    config: ConfigDict, videos: Sequence[str], num_clips: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """One centred crop of each video, by the pipeline that training uses."""
    config = config.copy_and_resolve_references().unlock()
    config.data.update(crop="centre", repeats=1, workers=0, on_error="raise", shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        if videos:
            listing = pathlib.Path(folder) / "videos.csv"
            with listing.open("w", newline="", encoding="utf-8") as file:
                rows = [["path"], *([str(pathlib.Path(v).resolve())] for v in videos)]
                csv.writer(file).writerows(rows)
            config.data.update(manifest=str(listing), root="/", style="csv")
        options = assemble.pipeline_options(config)
        count = len(videos) or min(num_clips, assemble.count_videos(config))
        with ClipPipeline(options, batch_videos=count, seed=config.seed) as pipeline:
            batch = next(pipeline)
    arrays = {name: batch.arrays[name] for name in ("video", "index")}
    return arrays, batch.names()


def write_pictures(
    videos: Mapping[str, np.ndarray], names: Sequence[str], out: pathlib.Path
) -> list[pathlib.Path]:
    """Writes the grid and the side-by-side videos; returns their paths, the grid first."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "reconstructions.png"]
    Image.fromarray(grid_picture(videos)).save(written[0])
    for clip, name in enumerate(names):
        frames = side_by_side(videos, clip)
        stem = out / f"{clip:02d}_{pathlib.Path(name).stem}"
        write_video(stem.with_suffix(".mp4"), frames, fps=_FRAMES_PER_SECOND)
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(
            stem.with_suffix(".gif"),
            save_all=True,
            append_images=pictures[1:],
            duration=1000 // _FRAMES_PER_SECOND,
            loop=0,
        )
        written += [stem.with_suffix(".mp4"), stem.with_suffix(".gif")]
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", nargs="*", help="files; default: clips of the run's manifest")
    parser.add_argument("--workdir", help="folder of a run: its config and newest checkpoint")
    parser.add_argument("--config", help="config.json of a run; default: that of the weights")
    parser.add_argument("--weights", help="any (docs/weights.md); default: the workdir's")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--manifest", help="list of videos to take clips of; default: the run's")
    parser.add_argument("--root", help="folder of that list's paths; default: its own")
    parser.add_argument("--teacher", help="its weights, if not where the run had them")
    parser.add_argument("--clips", type=int, default=4, help="of the manifest (default: 4)")
    args = parser.parse_args(argv)
    if not args.workdir and not args.weights:
        parser.error("give --workdir or --weights")
    overrides = {}
    if args.manifest:
        overrides = {"data.manifest": args.manifest, "data.root": args.root or ""}
    if args.teacher:
        overrides["teacher.weights"] = args.teacher
    try:
        model = assemble.open_model(args.weights or args.workdir, args.config, **overrides)
        videos, names = reconstruct(model, videos=args.videos, num_clips=args.clips)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    written = write_pictures(videos, names, pathlib.Path(args.out))
    print(f"Wrote {written[0]} and {len(written) - 1} videos of {len(names)} clips beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
