r"""Extracts features of sliding windows over videos of any length.

    python -m vmae_jax.tools.extract --weights=runs/k400_ft --manifest=list.csv --out=features
    python -m vmae_jax.tools.extract --weights=released.pth --out=features a.mp4 b.mp4 \
        --pooling=slot --layer=9 --step=8
    python -m vmae_jax.tools.extract --weights=g_k710.pth --preset=tad --manifest=thumos.csv \
        --out=thumos_features

Writes OUT/PATH.npz for each video, or OUT/features.h5, and OUT/extract.json; docs/features.md says
what they hold. The same command goes on where it was ended.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.data import storage
from vmae_jax.data.pipeline import PipelineOptions
from vmae_jax.data.source import Source
from vmae_jax.data.windows import Sliding, WindowFeed
from vmae_jax.errors import UserError
from vmae_jax.evals import passes
from vmae_jax.evals import window_features as features
from vmae_jax.evals.window_features import Extracted, FeatureError, FeatureFiles
from vmae_jax.systems.base import compute_copy
from vmae_jax.tools.listing import listed
from vmae_jax.train.checkpoints import versions
from vmae_jax.train.sharding import batch_sharding, make_mesh

FORMATS = ("npz", "hdf5")
NOTE = "extract.json"
_MAX_FRAMES = 10**8  # of a video; its bytes are bounded


@dataclasses.dataclass(frozen=True)
class Settings:
    """What features are of; kept in extract.json, and the same whenever a folder is gone on with.

    Attributes:
      window: frames of one; 0: the model's.
      stride: between its frames; 0: the recipe's.
      step: frames between starts of windows; 0: window x stride, each frame at most once.
      layer: block, from 1; None: the last.
      pooling: one of `features.POOLINGS`.
      squeeze: whole frames, squeezed to the size; else the crop in their middle.
      unit_range: pixels on a scale from 0 to 1 as they are, without the recipe's mean and std.
      dtype: of the features.
      format: one of `FORMATS`.
    """

    window: int = 0
    stride: int = 0
    step: int = 0
    layer: int | None = None
    pooling: str = "mean"
    squeeze: bool = False
    unit_range: bool = False
    dtype: str = "float32"
    format: str = "npz"


# VideoMAE V2's features for temporal action detection: 16 consecutive frames, squeezed to the size,
# on a scale from 0 to 1 without mean and deviation; what the classifier's head sees. Steps of 4
# for THUMOS14, of 16 for FineAction.
# Source: VideoMAE V2's released extraction, which does not round the squeezed pixels to 8 bits.
TAD = Settings(window=16, stride=1, step=4, pooling="head", squeeze=True, unit_range=True)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A model, the videos, and what is asked for, settled.

    Attributes:
      model: its parameters are a compute copy; its config has the data as it is read here.
      source: the videos.
      options: how their frames are cropped, and limits.
      names: of each video's features, below the folder.
      settings: with numbers in place of all defaults.
    """

    model: assemble.Model
    source: Source
    options: PipelineOptions
    names: list[str]
    settings: Settings

    def facts(self) -> dict[str, Any]:
        """What a folder of features is of; as JSON gives it back."""
        config = json.loads(config_lib.to_json(self.model.config))
        return {
            "settings": dataclasses.asdict(self.settings),
            "weights_sha256": self.model.sha256,
            "manifest_sha256": self.source.sha256,
            "model": config["model"],
            "data": {name: config["data"][name] for name in ("size", "filter", "mean", "std")},
        }


def prepare(
    weights: str,
    config_file: str | None,
    settings: Settings,
    *,
    videos: Sequence[str] = (),
    manifest: str = "",
    root: str = "",
    max_bytes: int = 4 << 30,
) -> Extraction:
    """Opens weights and videos.

    Args:
      weights: see `assemble.open_model`.
      config_file: likewise.
      settings: what is asked for.
      videos: files.
      manifest: a list of them, if no files are given.
      root: folder of its paths; "": its own.
      max_bytes: of one file.

    Raises:
      UserError: of whatever kind.
    """
    overrides: dict[str, Any] = {}
    if settings.window:
        overrides["data.frames"] = settings.window
    if settings.unit_range:
        overrides |= {"data.mean": (0.0, 0.0, 0.0), "data.std": (1.0, 1.0, 1.0)}
    model = assemble.open_model(weights, config_file, **overrides)
    config = passes.as_tested(model.config, manifest=manifest, root=root).unlock()
    config.data.update(style="auto", max_bytes=max_bytes, max_frames=_MAX_FRAMES)
    if settings.squeeze:
        config.data.crop = "none"
    if settings.unit_range and config.model.channels != 3:
        raise FeatureError(f"{weights}: a model of grey clips; the preset is of models of colour")
    window, stride = config.data.frames, settings.stride or config.data.stride
    settings = dataclasses.replace(
        settings,
        window=window,
        stride=stride,
        step=settings.step or window * stride,
        layer=settings.layer or model.system.encoder.depth,
    )
    copy = jax.jit(lambda params: compute_copy(params, model.system.compute_dtype))
    model = dataclasses.replace(model, config=config, params=copy(model.params))
    given = listed(videos) if videos else contextlib.nullcontext((manifest, root))
    with given as (listing, folder):
        config.data.update(manifest=listing, root=folder)
        options = assemble.pipeline_options(config)
        source = options.open_source()
    config.data.update(manifest=manifest, root=root)
    return Extraction(model, source, options, file_names(source), settings)


def file_names(source: Source) -> list[str]:
    """A path below a folder for each video: as listed; where that is not unique, with its number.

    What would lead out of the folder is replaced.
    """
    names: dict[str, None] = {}
    for i in range(len(source)):
        parts = [p for p in source.name(i).split("/") if p not in ("", ".")]
        name = "/".join("_" if part == ".." else part for part in parts)
        while name in names:
            name += f"#{i}"
        names[name] = None
    return list(names)


def extract(extraction: Extraction, out: str, *, batch: int, workers: int) -> dict[str, Any]:
    """Extracts what is not there yet, on the mesh that is set.

    Args:
      extraction: what from what.
      out: folder; or bucket, for npz.
      batch: windows at a time, over all devices; rounded up to a multiple of them.
      workers: threads that decode.

    Returns:
      the content of extract.json.

    Raises:
      FeatureError: the folder holds features of something else, or cannot be used.
      PipelineError: a decoder hangs.
    """
    settings, names = extraction.settings, extraction.names
    forward = _forward(extraction.model, settings)
    note, facts = storage.join(out, NOTE), extraction.facts()
    going_on = _check_note(note, facts)
    files = _files(out, settings.format)
    finished = files.finished(names) if going_on else set()
    _write_note(note, facts)
    todo = [i for i, name in enumerate(names) if name not in finished]
    devices = jax.device_count()
    batch = -(-batch // devices) * devices
    began = time.perf_counter()
    feed = WindowFeed(
        extraction.source,
        todo,
        sliding=Sliding(settings.window, settings.stride, settings.step),
        options=extraction.options,
        workers=workers,
        ahead=batch,
    )
    with feed, tqdm(total=len(names), initial=len(finished), unit="video", disable=None) as bar:

        def show(done: Extracted, windows: int) -> None:
            bar.set_postfix(windows=windows, refresh=False)
            bar.update(len(finished) + len(done.windows) + len(done.failures) - bar.n)

        extracted = features.extract(
            forward,
            feed,
            files,
            names=dict(enumerate(names)),
            batch=batch,
            on_batch=show,
        )
    facts |= {
        "counts": {
            "videos": len(names),
            "finished": len(finished) + len(extracted.windows),
            "failed": len(extracted.failures),
        },
        "failures": extracted.failures,
        "this_run": {
            "videos": len(extracted.windows),
            "windows": sum(extracted.windows.values()),
            "seconds": round(time.perf_counter() - began, 3),
        },
        "config": json.loads(config_lib.to_json(extraction.model.config)),
        "versions": versions(),
    }
    _write_note(note, facts)
    return facts


def _check_note(path: str, facts: dict[str, Any]) -> bool:
    """Whether there are features of the same kind; an error if there are others.

    Raises:
      FeatureError: see there.
    """
    try:
        found = json.loads(storage.read(path))
        differing = [
            f"{group}.{name} was {found[group].get(name)!r} and is {value!r}"
            for group in ("settings", "model", "data")
            for name, value in facts[group].items()
            if found[group].get(name) != value
        ]
        differing += [
            f"{name} was {found[name]} and is {facts[name]}"
            for name in ("weights_sha256", "manifest_sha256")
            if found[name] != facts[name]
        ]
    except FileNotFoundError:
        return False
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise FeatureError(f"{path} is not a file of this command ({error}); move it") from error
    if differing:
        raise FeatureError(
            f"{path} is of other features: {'; '.join(differing)}. Give another --out, or delete "
            "the folder"
        )
    return True


def _write_note(path: str, facts: dict[str, Any]) -> None:
    storage.write(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def _files(out: str, kind: str) -> FeatureFiles:
    if kind == "npz":
        return features.NpzFiles(out)
    return features.Hdf5File(storage.join(out, "features.h5"))


def _forward(model: assemble.Model, settings: Settings) -> Callable[[np.ndarray], jax.Array]:
    """uint8 [B, T, H, W, C] -> features, over all devices of the mesh that is set."""
    function = features.make_features(
        model.system.encoder,
        pooling=settings.pooling,
        layer=settings.layer,
        dtype=settings.dtype,
    )
    layout = batch_sharding(jax.sharding.get_mesh())
    compiled = jax.jit(lambda params, video: function(params, {"video": video}))
    return lambda video: compiled(model.params, jax.device_put(video, layout))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", help="files; or give --manifest")
    parser.add_argument("--weights", required=True, help="workdir, folder or file: docs/weights.md")
    parser.add_argument("--config", help="config.json; default: that of the weights")
    parser.add_argument("--manifest", default="", help="list or set of videos: docs/data.md")
    parser.add_argument("--root", default="", help="folder of its paths; default: its own")
    parser.add_argument("--out", required=True, help="folder for the features")
    parser.add_argument("--format", choices=FORMATS, default="npz", help="default: npz")
    parser.add_argument("--dtype", choices=features.DTYPES, default="float32", help="of the files")
    parser.add_argument("--window", type=_positive, help="frames of a window; default: the model's")
    parser.add_argument("--stride", type=_positive, help="between its frames; default: recipe's")
    parser.add_argument(
        "--step", type=_positive, help="frames between windows; default: window x stride"
    )
    parser.add_argument("--layer", type=_positive, help="block, from 1; default: the last")
    parser.add_argument(
        "--pooling",
        choices=features.POOLINGS,
        help="mean of the tokens (default), of each time slot, all tokens, what the head sees",
    )
    parser.add_argument(
        "--squeeze", action="store_true", help="whole frames, not the crop in the middle"
    )
    parser.add_argument(
        "--preset", choices=("tad",), help="V2's features for temporal action detection"
    )
    parser.add_argument("--batch", type=_positive, default=16, help="windows at a time (16)")
    parser.add_argument("--workers", type=_positive, default=2, help="decoding threads (2)")
    parser.add_argument("--max_bytes", type=_positive, default=4 << 30, help="of a file (4 GiB)")
    args = parser.parse_args(argv)
    if bool(args.videos) == bool(args.manifest):
        parser.error("give either video files or --manifest")
    fixed = ("window", "stride", "layer", "pooling", "squeeze")
    if args.preset and (given := [name for name in fixed if getattr(args, name)]):
        parser.error(f"--preset={args.preset} decides --{given[0]}; leave one of them out")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; give a whole number from 1 on")
    return int(text)


def _settings(args: argparse.Namespace) -> Settings:
    kept = {"dtype": args.dtype, "format": args.format}
    if args.preset:
        return dataclasses.replace(TAD, step=args.step or TAD.step, **kept)
    return Settings(
        window=args.window or 0,
        stride=args.stride or 0,
        step=args.step or 0,
        layer=args.layer,
        pooling=args.pooling or "mean",
        squeeze=args.squeeze,
        **kept,
    )


def describe(facts: dict[str, Any]) -> str:
    """The closing lines."""
    run, counts = facts["this_run"], facts["counts"]
    rate = run["windows"] / max(run["seconds"], 1e-9)
    lines = [
        f"{run['videos']} videos, {run['windows']} windows in {run['seconds']:.1f} s "
        f"({rate:.1f} windows/s); {counts['finished']} of {counts['videos']} videos are there."
    ]
    lines += [f"{name}: {reason}" for name, reason in list(facts["failures"].items())[:_SHOWN]]
    if counts["failed"]:
        lines.append(f"{counts['failed']} videos could not be used; {NOTE} lists them.")
    return "\n".join(lines)


_SHOWN = 20  # failures


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line.

    Returns:
      0: all videos are there; 1: some could not be used; 2: weights, videos or folder cannot be.
    """
    args = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with jax.set_mesh(make_mesh(fsdp=1)):
            extraction = prepare(
                args.weights,
                args.config,
                _settings(args),
                videos=args.videos,
                manifest=args.manifest,
                root=args.root,
                max_bytes=args.max_bytes,
            )
            facts = extract(extraction, args.out, batch=args.batch, workers=args.workers)
    except (UserError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("extract: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    print(describe(facts))
    return 1 if facts["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
