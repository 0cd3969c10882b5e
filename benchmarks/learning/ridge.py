"""How much a linear map finds in the mean token of each layer: trained weights beside random ones.

    python benchmarks/learning/ridge.py --weights=runs/motion_learning/pretrain \
        --train=runs/motion/train.csv --val=runs/motion/val.csv

Ridge regression to the classes, on standardised means of all tokens; the best of several strengths,
chosen on the held-out videos themselves. Prints top-1 in %, one line a layer.
"""

import argparse

import jax
import numpy as np

from vmae_jax import assemble
from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.tools.probe import options_of

STRENGTHS = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
BATCH_VIDEOS = 20


def features(model, trees, manifest: str) -> tuple[dict[tuple[str, int], np.ndarray], np.ndarray]:
    """Mean tokens [n, D] by (name of the tree, layer), and labels [n]."""
    encoder = model.system.encoder
    layers = range(1, encoder.depth + 1)

    @jax.jit
    def means(params, video):
        return [encoder.tokens(params, {"video": video}, layer).mean(axis=1) for layer in layers]

    found, labels = {(name, layer): [] for name in trees for layer in layers}, []
    with ClipPipeline(
        options_of(model.config, manifest, ""), batch_videos=BATCH_VIDEOS, seed=0, once=True
    ) as clips:
        for batch in clips:
            there = batch.arrays["index"] >= 0
            labels.append(batch.arrays["label"][there])
            for name, params in trees.items():
                each = means(params, batch.arrays["video"])
                for layer, mean in zip(layers, each, strict=True):
                    found[name, layer].append(np.asarray(mean)[there])
    return {key: np.concatenate(parts) for key, parts in found.items()}, np.concatenate(labels)


def top1(x: np.ndarray, labels: np.ndarray, val_x: np.ndarray, val_labels: np.ndarray) -> float:
    """Top-1 in % of the best ridge regression from features [n, D] to classes."""
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-8
    x, val_x = (x - mean) / deviation, (val_x - mean) / deviation
    wanted = np.eye(labels.max() + 1)[labels]
    wanted = wanted - wanted.mean(axis=0)
    right = [
        np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ wanted)
        for strength in STRENGTHS
    ]
    return 100 * max(((val_x @ w).argmax(axis=1) == val_labels).mean() for w in right)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="a run, or one of its checkpoints")
    parser.add_argument("--train", required=True, help="list to learn from")
    parser.add_argument("--val", required=True, help="list to test on")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args()
    model = assemble.open_model(args.weights)
    trees = {"weights": model.params, "random": model.system.init(jax.random.key(args.seed))}
    train, labels = features(model, trees, args.train)
    val, val_labels = features(model, trees, args.val)
    for (name, layer), x in train.items():
        print(f"{name} layer {layer}: {top1(x, labels, val[name, layer], val_labels):.1f}")


if __name__ == "__main__":
    main()
