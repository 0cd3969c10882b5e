r"""How near a UMT student comes to its teacher on other videos, and what knowing less costs.

    python benchmarks/learning/umt_held_out.py --weights=runs/umt --manifest=val.csv

Prints the loss of the weights, of fresh ones, and of the best answer that all tokens of a layer
share (where answers are of unit length), on the first clips of the list, without drop path.
"""

import argparse

import jax
import numpy as np

from vmae_jax import assemble
from vmae_jax.systems.base import clip_keys


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--batches", type=int, default=8, help="of the recipe's size")
    args = parser.parse_args()
    model = assemble.open_model(args.weights, **{"data.manifest": args.manifest})
    system, key = model.system, jax.random.key(model.config.seed)
    frozen = assemble.open_frozen(model.config, system)
    fresh = jax.jit(system.init)(jax.random.key(model.config.seed + 1))

    @jax.jit
    def judged(frozen, batch):
        keys = clip_keys(key, 0, batch["index"])
        made = system.targets(frozen, batch, keys)
        ratios = [system.loss(params, made, keys, False)[0] for params in (model.params, fresh)]
        return [total / weight for total, weight in ratios], made["target"].mean(axis=(1, 2))

    with assemble.open_pipeline(model.config, start_step=0) as pipeline:
        found = [judged(frozen, next(pipeline).arrays) for _ in range(args.batches)]
    losses = np.mean([np.asarray(loss) for loss, _ in found], axis=0)
    # 2 - 2 cos is least for the direction of the mean, whose length is the mean cosine then.
    length = np.linalg.norm(np.mean([np.asarray(mean) for _, mean in found], axis=0), axis=-1)
    print(
        "trained {:.4f}, fresh {:.4f}, ".format(*losses) + f"constant {2 - 2 * length.mean():.4f}"
    )


if __name__ == "__main__":
    main()
