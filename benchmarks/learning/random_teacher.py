r"""Writes the image tower of a recipe as nobody has trained it, in the names of CLIP.

    python benchmarks/learning/random_teacher.py --config=configs/umt_b_k710.py:smoke \
        --size=112 --out=runs/random_tower.safetensors
"""

import argparse
import pathlib

import jax

from vmae_jax import systems
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import to_theirs
from vmae_jax.convert.export import save_arrays
from vmae_jax.tools.bench import load_config


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--size", type=int, help="side of its frames; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .safetensors file")
    args = parser.parse_args()
    config = load_config(args.config).unlock()
    if args.size:
        config.data.size = config.teacher.size = (args.size, args.size)
    tower = jax.jit(systems.build(config).init_frozen)(jax.random.key(args.seed))
    named = to_theirs(jax.device_get(tower), clip_table(tuple(config.teacher.tubelet)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(args.out, named, {"licence": "none: random numbers"})
    print(args.out)


if __name__ == "__main__":
    main()
