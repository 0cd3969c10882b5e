r"""Tests a classifier by the published protocol: several views of each video, averaged.

    python -m vmae_jax.tools.evaluate --weights=runs/k400_ft --manifest=val.csv --out=results/k400
    python -m vmae_jax.tools.evaluate --weights=released.pth --config=config.json \
        --manifest=val.csv --root=videos --views=2,3 --group=^dark_ --group=^tennis_

Writes OUT/result.json (metrics, config, hashes, counts, versions), OUT/predictions.csv (a line per
video) and OUT/confusion.png. On several hosts the same command runs on each; see docs/scaling.md.
"""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.errors import UserError
from vmae_jax.evals import passes
from vmae_jax.evals.confusion import confusion_picture
from vmae_jax.evals.multiview import Result, evaluate
from vmae_jax.tools import processes
from vmae_jax.train.checkpoints import versions


def evaluate_set(
    model: assemble.Model,
    *,
    manifest: str,
    root: str = "",
    views: tuple[int, int] | None = None,
    clips: int = 0,
    groups: Sequence[str] = (),
) -> tuple[Result, dict[str, Any]]:
    """Tests a model; all processes call it together.

    Args:
      model: a classifier, on the mesh that is set.
      manifest: labelled videos.
      root: folder of its paths; "": its own.
      views: (clips, crops) of each video; None: those of the recipe.
      clips: of a batch over all devices, about; 0: 8 for each.
      groups: regular expressions on names of classes, to count their videos apart.

    Returns:
      (what is said of each video, the content of result.json).

    Raises:
      UserError: of whatever kind.
    """
    views = views or tuple(model.config.data.views)
    config = passes.as_tested(model.config, manifest=manifest, root=root, views=views)
    with passes.open_pass(assemble.pipeline_options(config), clips=clips) as pipeline:
        source = pipeline.source
        if not source.num_classes:
            raise passes.EvaluationError(f"{manifest} has no labels to compare with")
        result = evaluate(model.system, model.params, pipeline, class_names=model.class_names)
    failed = {result.names[i]: reason for i, reason in result.failures.items()}
    return result, {
        "metrics": result.metrics(),
        "groups": {pattern: result.group(pattern) for pattern in groups},
        "classes": {
            result.name_of(label): share for label, share in result.class_accuracies().items()
        },
        "videos": len(result.names),
        "views": list(views),
        "failures": failed,
        "weights_sha256": model.sha256,
        "manifest": manifest,
        "manifest_sha256": source.sha256,
        "versions": versions(),
        "config": json.loads(config_lib.to_json(config)),
    }


def write(result: Result, facts: dict[str, Any], out: pathlib.Path) -> None:
    """Writes result.json, predictions.csv and confusion.png into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out / "predictions.csv").write_text(result.as_csv(), encoding="utf-8")
    picture = confusion_picture(result.confusion(), result.class_names)
    Image.fromarray(picture).save(out / "confusion.png")


def describe(facts: dict[str, Any]) -> str:
    """The figures in a few lines."""
    metrics, failures = facts["metrics"], facts["failures"]
    clips, crops = facts["views"]
    lines = [
        f"{facts['videos']} videos, {clips} x {crops} views: top-1 {metrics['top1']:.2%}, "
        f"top-5 {metrics['top5']:.2%}, mean over classes {metrics['class_mean']:.2%}"
    ]
    lines += [
        f"{pattern}: top-1 {group['top1']:.2%} of {group['videos']} videos"
        for pattern, group in facts["groups"].items()
    ]
    if failures:
        name, reason = next(iter(failures.items()))
        lines.append(
            f"{len(failures)} cannot be read and count as wrong; the first: {name}: {reason}"
        )
    return "\n".join(lines)


def views_flag(text: str) -> tuple[int, int]:
    """Reads "5,3"."""
    clips, crops = (int(part) for part in text.split(","))
    if min(clips, crops) < 1:
        raise ValueError
    return clips, crops


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, help="workdir, folder or file (docs/weights.md)"
    )
    parser.add_argument("--config", help="config.json; default: that of the weights")
    parser.add_argument("--manifest", required=True, help="labelled videos (docs/data.md)")
    parser.add_argument("--root", default="", help="folder of its paths; default: its own")
    parser.add_argument("--out", help="folder for the files; default: nothing is written")
    parser.add_argument("--views", type=views_flag, metavar="CLIPS,CROPS", help="default: config's")
    parser.add_argument("--group", action="append", default=[], metavar="REGEX")
    parser.add_argument("--clips", type=int, default=0, help="of a batch; default: 8 a device")
    processes.add_flags(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with processes.joined(args):
            model = assemble.open_model(args.weights, args.config)
            result, facts = evaluate_set(
                model,
                manifest=args.manifest,
                root=args.root,
                views=args.views,
                clips=args.clips,
                groups=args.group,
            )
            if processes.is_first():
                print(describe(facts))
                if args.out:
                    write(result, {"weights": args.weights, **facts}, pathlib.Path(args.out))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
