r"""Trains a small image tower of CLIP's form without labels: a teacher where CLIP's is not at hand.

    python benchmarks/learning/image_tower.py --train=train.csv --out=runs/tower.safetensors

Two crops of different frames of a video are to find each other among the crops of all videos of a
batch (InfoNCE), compared by the patch features of the last layer, weighted as the class token
attends to them: so both things that Unmasked Teacher asks a tower for are trained. Writes the names
of CLIP's own image tower, which `config.teacher.weights` reads.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import to_theirs
from vmae_jax.convert.export import save_arrays
from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.ops.losses import unit_vectors
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.preprocess import normalise
from vmae_jax.variants import StackSpec

SPEC = StackSpec(width=128, depth=4, heads=2)
PATCH, SIZE, OUTPUT = 8, 64, 64
TEMPERATURE = 0.1


def recipe(manifest: str, steps: int) -> ConfigDict:
    """What of each video is looked at: single frames, two a video, each cut out anew."""
    config = config_lib.pretrain_defaults().unlock()
    config.data.manifest = manifest
    config.data.frames = config.data.stride = 1
    config.data.size = (SIZE, SIZE)
    config.data.crop = "resized"
    config.data.crop_area = (0.3, 1.0)
    config.data.flip = True
    config.data.repeats = 2
    config.data.repeat_windows = True
    config.data.workers = 1
    config.train.batch_videos = 48
    config.train.steps = steps
    return config.lock()


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="videos to learn from")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .safetensors file")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    config = recipe(args.train, args.steps)
    tower = functional(
        lambda rngs: ImageTower(
            SPEC,
            StackOptions(remat="none"),
            values=PATCH * PATCH * 3,
            grid=(SIZE // PATCH,) * 2,
            output=OUTPUT,
            rngs=rngs,
        )
    )
    warmup = args.steps // 10
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, args.steps)
    optimizer = optax.adamw(rate, weight_decay=0.05)
    params = tower.init(jax.random.key(config.seed))
    state = optimizer.init(params)

    def loss(params, video):
        frames = normalise(video, mean=config.data.mean, std=config.data.std)
        patches = patchify(frames, (1, PATCH, PATCH))
        features, attention = tower.apply(params, patches, taps=(SPEC.depth,))
        found = unit_vectors(jnp.einsum("fnd,fn->fd", features[0], attention))
        scores = found @ found.T / TEMPERATURE - 1e9 * jnp.eye(len(found))
        partner = jnp.arange(len(found)) ^ 1  # the crops of a video are adjacent
        right = (scores.argmax(axis=1) == partner).mean()
        return optax.softmax_cross_entropy_with_integer_labels(scores, partner).mean(), right

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, video):
        found, gradient = jax.value_and_grad(loss, has_aux=True)(params, video)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, found

    with assemble.open_pipeline(config, start_step=0) as clips:
        for step in range(1, args.steps + 1):
            params, state, found = update(params, state, next(clips).arrays["video"])
            if step % 100 == 0 or step == 1:
                value, right = (float(x) for x in found)
                print(f"step {step}  loss {value:.3f}  found its partner {right:.3f}", flush=True)
    theirs = to_theirs(jax.device_get(params), clip_table((1, PATCH, PATCH)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(args.out, theirs, {"licence": "that of the videos it was trained on"})
    print(args.out)


if __name__ == "__main__":
    main()
