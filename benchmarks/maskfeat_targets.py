r"""What MaskFeat's targets and masks cost a clip of 16 x 224 x 224.

    python benchmarks/maskfeat_targets.py --clips=4

Bins are found by cross products; beside them the same histograms by the angle.
"""

import argparse
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.ops import block_masks, hog


def by_angle(across: jax.Array, down: jax.Array, bins: int) -> jax.Array:
    """The bins as they are defined, in place of `hog.orientation`."""
    phase = jnp.atan2(across, down) / math.pi * bins
    return jnp.floor(phase).astype(jnp.int32) % bins


def milliseconds(compute: Callable[[jax.Array], jax.Array], argument: jax.Array) -> str:
    """Per clip, the shortest of ten runs: by the clock, and of this process's processor time."""
    compute = jax.jit(compute)
    jax.block_until_ready(compute(argument))
    runs = []
    for _ in range(10):
        clock, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(compute(argument))
        runs.append((time.perf_counter() - clock, time.process_time() - processor))
    clock, processor = (1e3 * min(values) / len(argument) for values in zip(*runs, strict=True))
    return f"{clock:9.3f} ms a clip, processor {processor:9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=4)
    clips = parser.parse_args().clips
    pixels = np.random.default_rng(0).integers(0, 256, (clips, 16, 224, 224, 3), np.uint8)

    pixels = jnp.asarray(pixels)
    rules = {"cross products": hog.orientation, "the angle": by_angle}
    for name, rule in rules.items():
        hog.orientation = rule

        def targets(video: jax.Array) -> jax.Array:
            return hog.hog_targets(video, (2, 16, 16))

        print(f"histograms by {name:<16}{milliseconds(targets, pixels)}")
    keys = jax.random.split(jax.random.key(0), 32)
    for kind in block_masks.BLOCK_MASKS:

        def masks(keys: jax.Array, kind: str = kind) -> jax.Array:
            return block_masks.cell_masks(keys, kind=kind, ratio=0.4, cells=(8, 7, 7))

        print(f"masks, {kind:<23}{milliseconds(masks, keys)}")


if __name__ == "__main__":
    main()
