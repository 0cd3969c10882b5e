r"""Says what is seen in videos: the most probable classes, and a picture of the videos with them.

    python -m vmae_jax.tools.predict a.mp4 b.mp4 --weights=runs/k400_ft --out=seen.png

Several views of each video are averaged, as in a test (docs/evaluation.md).
"""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from vmae_jax import assemble
from vmae_jax.data.video import VideoError, read_frames
from vmae_jax.errors import UserError
from vmae_jax.evals import passes
from vmae_jax.evals.contact_sheet import contact_sheet
from vmae_jax.evals.multiview import Result, evaluate
from vmae_jax.tools.evaluate import views_flag
from vmae_jax.tools.listing import listed
from vmae_jax.train.sharding import make_mesh

_FRAMES = 8  # of each video in the picture


def predict(
    model: assemble.Model, videos: Sequence[str], *, views: tuple[int, int] | None = None
) -> Result:
    """Classifies files; those that cannot be read are in the result's failures.

    Args:
      model: a classifier, on the mesh that is set.
      videos: paths.
      views: (clips, crops) of each; None: those of the recipe.

    Raises:
      UserError: of whatever kind.
    """
    views = views or tuple(model.config.data.views)
    with listed(videos) as (manifest, root):
        config = passes.as_tested(model.config, manifest=manifest, root=root, views=views).unlock()
        config.data.update(workers=0, style="csv")
        with passes.open_pass(assemble.pipeline_options(config)) as pipeline:
            return evaluate(model.system, model.params, pipeline, class_names=model.class_names)


def answers(result: Result, video: int, top: int) -> list[tuple[str, float]]:
    """The most probable classes of a video and their probabilities, best first."""
    shares = result.probabilities[video]
    return [(result.name_of(int(c)), float(shares[c])) for c in result.top(top)[video]]


def sheet(videos: Sequence[str], result: Result, top: int) -> np.ndarray:
    """The picture of the videos that could be read, uint8 [H, W, 3]."""
    shown = []
    for video, path in enumerate(videos):
        if video not in result.failures:
            frames = read_frames(path, lambda n, _fps: np.linspace(0, n - 1, _FRAMES).round())
            shown.append((pathlib.Path(path).name, frames, answers(result, video, top)))
    return contact_sheet(shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status: 1 if a video cannot be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", help="files")
    parser.add_argument("--weights", required=True, help="a classifier's, any (docs/weights.md)")
    parser.add_argument("--config", help="config.json; default: that of the weights")
    parser.add_argument("--views", type=views_flag, metavar="CLIPS,CROPS", help="default: config's")
    parser.add_argument("--top", type=int, default=5, help="classes that are shown (default: 5)")
    parser.add_argument("--out", default="predictions.png", help="default: predictions.png")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with jax.set_mesh(make_mesh(1)):
            model = assemble.open_model(args.weights, args.config)
            result = predict(model, args.videos, views=args.views)
        picture = sheet(args.videos, result, args.top)
    except (UserError, VideoError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for video, path in enumerate(args.videos):
        print(path)
        if reason := result.failures.get(video):
            print(f"  cannot be read: {reason}", file=sys.stderr)
            continue
        for name, share in answers(result, video, args.top):
            print(f"  {share:7.2%}  {name}")
    Image.fromarray(picture).save(args.out)
    print(f"Picture: {args.out}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
