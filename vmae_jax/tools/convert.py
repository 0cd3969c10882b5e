r"""Converts weights of any origin: for us, for transformers, to released names, into programs.

    python -m vmae_jax.tools.convert released.pth --out=weights/k400
    python -m vmae_jax.tools.convert released.pth --dry_run
    python -m vmae_jax.tools.convert runs/mine --to=transformers --out=for_transformers
    python -m vmae_jax.tools.convert runs/mine --to=stablehlo --out=programs
    python -m vmae_jax.tools.convert g_k710.pth --label_map=label_710to400.json --out=weights/g_k400

Prints where the weights come from, their SHA-256, their licence and what became of every name;
docs/weights.md says what is read and what the results hold.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vmae_jax import assemble, systems
from vmae_jax.convert import export
from vmae_jax.convert.engine import ConversionError
from vmae_jax.convert.fit import Fitted, fit
from vmae_jax.convert.label_maps import map_head, read_label_map
from vmae_jax.convert.sources import Source
from vmae_jax.convert.stablehlo import save_programs
from vmae_jax.convert.towers import Tower, tower_of
from vmae_jax.errors import UserError

TARGETS = ("vmae", "transformers", "released", "stablehlo")
TOWER_TARGETS = ("vmae", "released")
OF_SYSTEMS = ("config", "frames", "label_map", "classes", "metrics")  # flags
REPORT = "conversion.txt"


def load(args: argparse.Namespace) -> tuple[Source, ConfigDict | Tower, Fitted]:
    """Reads the source and fits it to its recipe, or an image tower to its size, exactly.

    Raises:
      UserError: of whatever kind; says what to put right.
    """
    source = assemble.read_weights(args.source)
    print(source.describe())
    if source.tower:
        return source, *_load_tower(args, source)
    overrides: dict[str, Any] = {}
    if args.label_map:
        label_map = read_label_map(args.label_map)
        whole, source = source, map_head(source, label_map)
        names = assemble.recipe_of(whole, args.config).model.class_names
        overrides["model.num_classes"] = len(label_map)
        overrides["model.class_names"] = tuple(names[row] for row in label_map) if names else ()
    if args.classes:
        overrides["model.class_names"] = _class_names(args.classes)
    if args.frames:
        overrides["data.frames"] = args.frames
    if args.size:
        overrides["data.size"] = _height_width(args.size)
    config = assemble.recipe_of(source, args.config, overrides)
    template = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    return source, config, assemble.fit_weights(source, config, template)


def _load_tower(args: argparse.Namespace, source: Source) -> tuple[Tower, Fitted]:
    given = [name for name in OF_SYSTEMS if getattr(args, name)]
    if given or args.to not in TOWER_TARGETS:
        what = given[0] if given else f"to={args.to}"
        raise ConversionError(
            f"--{what}: {source.path} is an image tower, no system; it is converted "
            f"--to={' or --to='.join(TOWER_TARGETS)}, without {', '.join(OF_SYSTEMS)}"
        )
    tower = tower_of(source)
    if args.size:
        tower = dataclasses.replace(tower, grid=tower.grid_of(_height_width(args.size)))
    grid, source_grid = (1, *tower.grid), (1, *tower_of(source).grid)
    fitted = fit(source.arrays, source.report, tower.shapes, grid=grid, source_grid=source_grid)
    return tower, fitted


def write(
    args: argparse.Namespace, source: Source, recipe: ConfigDict | Tower, fitted: Fitted
) -> list[pathlib.Path]:
    """Writes what `--to` names; returns the files."""
    out, licence = pathlib.Path(args.out), args.licence or source.licence
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"--out={out} is not an empty folder; give another one")
    if isinstance(recipe, Tower):
        if args.to == "released":
            return export.save_released_tower(out, fitted.arrays, recipe, licence=licence)
        return export.save_tower(out, fitted.arrays, recipe, source=source, licence=licence)
    config = recipe
    if args.to == "released":
        return export.save_released(out, fitted.arrays, config, licence=licence)
    if args.to == "stablehlo":
        config = config.copy_and_resolve_references().unlock()
        config.model.encoder.attention = "xla"  # what runs on every platform
        config.model.dtype = args.dtype
        system = systems.build(config)
        video = (config.data.frames, *config.data.size, config.model.channels)
        return save_programs(out, fitted.arrays, system, video=video, licence=licence)
    if args.to == "transformers":
        return export.save_transformers(out, fitted.arrays, config, licence=licence)
    return export.save_ours(
        out,
        fitted.arrays,
        config,
        source=source,
        licence=licence,
        metrics=_metrics(args.metrics) if args.metrics else None,
    )


def _height_width(size: Sequence[int]) -> tuple[int, int]:
    """Of one number for both, or two."""
    return size[0], size[-1]


def _class_names(path: str) -> tuple[str, ...]:
    """A name a line, as in the classes.txt beside a list of videos."""
    try:
        return tuple(pathlib.Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise ConversionError(f"--classes={path} cannot be read: {error}") from error


def _metrics(path: str) -> dict[str, Any]:
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"--metrics={path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"--metrics={path} holds no JSON object")
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="workdir, checkpoint, folder, .safetensors or PyTorch file")
    parser.add_argument("--out", help="folder to write, empty or not there yet")
    parser.add_argument("--to", choices=TARGETS, default="vmae", help="default: vmae")
    parser.add_argument("--dry_run", action="store_true", help="say what would become of each name")
    parser.add_argument("--config", help="config.json; default: the source's own, or inferred")
    parser.add_argument("--frames", type=int, help="of a clip, where the source does not tell")
    parser.add_argument("--size", type=int, nargs="+", help="height and width, or one for both")
    parser.add_argument("--label_map", help="JSON list: row of the head for each new class")
    parser.add_argument("--classes", help="text file with the name of a class on each line")
    parser.add_argument("--licence", help="of the weights, where you know better than the source")
    parser.add_argument("--metrics", help="JSON of results, for the model card")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of programs' products"
    )
    args = parser.parse_args(argv)
    if not args.dry_run and not args.out:
        parser.error("give --out=FOLDER, or --dry_run")
    if args.size and len(args.size) > 2:
        parser.error("--size takes height and width, or one number")
    try:
        source, recipe, fitted = load(args)
        if args.dry_run:
            print(fitted.report.details())
            print(fitted.report)
            return 0
        written = write(args, source, recipe, fitted)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(fitted.report)
    text = f"{source.describe()}\n{fitted.report.details()}\n{fitted.report}\n"
    (pathlib.Path(args.out) / REPORT).write_text(text, encoding="utf-8")
    print(f"Wrote {', '.join(path.name for path in written)} and {REPORT} to {args.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
