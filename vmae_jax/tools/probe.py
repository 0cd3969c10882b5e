r"""Asks how good a frozen encoder is: nearest neighbours, a linear and an attentive classifier.

    python -m vmae_jax.tools.probe --weights=runs/mine --train=train.csv --val=val.csv
    python -m vmae_jax.tools.probe --weights=runs/mine --train=train.csv --val=val.csv \
        --against_random --probes=knn,linear,attentive --out=probes.json

Prints a line per probe: the best setting's accuracy, and with --against_random that of the same
network with random weights beside it.
"""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.data.pipeline import PipelineOptions
from vmae_jax.errors import UserError
from vmae_jax.evals import passes
from vmae_jax.evals.features import MAX_GIB
from vmae_jax.evals.probe import PROBES, make_probe, summary
from vmae_jax.tools import processes
from vmae_jax.train.checkpoints import versions
from vmae_jax.train.sharding import state_shardings


def random_params(model: assemble.Model, seed: int) -> Any:
    """Parameters as at the first step of a run, laid out like the model's."""
    key = jax.random.key(seed)
    layout = state_shardings(jax.eval_shape(model.system.init, key), jax.sharding.get_mesh())
    return jax.jit(model.system.init, out_shardings=layout)(key)


def options_of(config: ConfigDict, manifest: str, root: str, crops: int = 0) -> PipelineOptions:
    """What is read of a list: the centre view of each video, or `crops` random ones of a clip."""
    config = passes.as_tested(config, manifest=manifest, root=root)
    if crops:
        config = config.unlock()
        config.data.update(select="random", crop="resized", repeats=crops)
    return assemble.pipeline_options(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, help="workdir, folder or file (docs/weights.md)"
    )
    parser.add_argument("--config", help="config.json; default: that of the weights")
    parser.add_argument("--train", required=True, help="labelled videos that probes learn from")
    parser.add_argument("--train_root", default="", help="folder of its paths; default: its own")
    parser.add_argument("--val", required=True, help="labelled videos that they are asked about")
    parser.add_argument("--val_root", default="", help="folder of its paths; default: its own")
    parser.add_argument("--probes", default="knn,linear", help=f"of {','.join(PROBES)}")
    parser.add_argument(
        "--augment_views",
        type=int,
        default=0,
        metavar="N",
        help="learn from N random crops of a random clip; default: from the centre view",
    )
    parser.add_argument("--group", action="append", default=[], metavar="REGEX")
    parser.add_argument("--against_random", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of heads, crops and random weights")
    parser.add_argument("--clips", type=int, default=0, help="of a batch; default: 8 a device")
    parser.add_argument("--max_gib", type=float, default=MAX_GIB, help="of features on a host")
    parser.add_argument("--out", help="JSON file for the scores of all settings")
    processes.add_flags(parser)
    args = parser.parse_args(argv)
    probes = tuple(args.probes.split(","))
    if unknown := set(probes) - set(PROBES):
        parser.error(f"--probes: {', '.join(unknown)}; choose among {', '.join(PROBES)}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with processes.joined(args):
            facts = _probe(args, probes)
            if processes.is_first():
                print(_table(facts["scores"]))
                if args.out:
                    pathlib.Path(args.out).write_text(json.dumps(facts, indent=2) + "\n")
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _probe(args: argparse.Namespace, probes: tuple[str, ...]) -> dict[str, Any]:
    model = assemble.open_model(args.weights, args.config)
    train = options_of(model.config, args.train, args.train_root, args.augment_views)
    val = options_of(model.config, args.val, args.val_root)
    run = make_probe(
        model.system,
        probes,
        train,
        val,
        groups=args.group,
        clips=args.clips,
        max_gib=args.max_gib,
        seed=args.seed,
    )
    scores = {"weights": run(model.params)}
    if args.against_random:
        scores["random"] = run(random_params(model, args.seed))
    return {
        "scores": scores,
        "weights": args.weights,
        "weights_sha256": model.sha256,
        "train": _facts(train),
        "val": _facts(val),
        "seed": args.seed,
        "versions": versions(),
        "config": json.loads(config_lib.to_json(model.config)),
    }


def _facts(options: PipelineOptions) -> dict[str, Any]:
    source = options.open_source()
    return {"manifest": options.manifest, "sha256": source.sha256, "videos": len(source)}


def _table(scores: dict[str, Any]) -> str:
    best = {of: summary(found) for of, found in scores.items()}
    width = max(map(len, best["weights"])) + 2
    lines = ["".join([" " * width, *(f"{of:>10}" for of in best)])]
    lines += [
        "".join([f"{figure:{width}}", *(f"{found[figure]:>10.2%}" for found in best.values())])
        for figure in best["weights"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
