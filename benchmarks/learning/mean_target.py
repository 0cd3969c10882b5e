r"""What it costs to predict the mean target: a loss below it has learned something of the clips.

    python benchmarks/learning/mean_target.py --config=benchmarks/learning/maskfeat.py \
        --manifest=train.csv --batches=20

Of a pretraining recipe; over the tokens that carry loss, as training meets them.
"""

import argparse

import jax
import numpy as np

from vmae_jax import assemble, systems
from vmae_jax.systems.base import clip_keys
from vmae_jax.tools.bench import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    config = load_config(args.config).unlock()
    config.data.manifest = args.manifest
    system = systems.build(config)

    @jax.jit
    def moments(batch, step):
        made = system.targets(
            None, batch, clip_keys(jax.random.key(config.seed), step, batch["index"])
        )
        weight = made["weight"][..., None]
        target = made["target"] * weight
        return weight.sum(), target.sum(axis=(0, 1)), (target**2).sum(axis=(0, 1))

    with assemble.open_pipeline(config, start_step=0) as pipeline:
        found = [moments(next(pipeline).arrays, step) for step in range(args.batches)]
    count, first, second = (
        np.sum([np.asarray(f, np.float64) for f in part], axis=0)
        for part in zip(*found, strict=True)
    )
    variance = second / count - (first / count) ** 2
    costs = (second / count).mean(), variance.mean()
    print("{} tokens: to predict zero costs {:.5f}, their mean {:.5f}".format(int(count), *costs))


if __name__ == "__main__":
    main()
