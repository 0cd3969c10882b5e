"""Runs golden cases of MaskFeat's targets and masks through our code, in float32."""

import functools

import jax
import numpy as np
from einops import rearrange
from golden import Case, Comparison

from vmae_jax.ops.block_masks import cell_masks, cells_to_hide
from vmae_jax.ops.hog import hog


def histograms(case: Case, result: Comparison) -> None:
    reference = case.arrays("outputs")
    ours = {}
    for name, config in case.config.items():
        frames = reference.pop(f"{name}_frames")
        compute = functools.partial(
            hog, bins=config["nbins"], cell=config["cell"], window=config["gaussian_window"]
        )
        ours[f"{name}_hog"] = jax.jit(compute)(rearrange(frames, "n c h w -> n h w c"))
    result.arrays("outputs", ours, reference)


def mask_generators(case: Case, result: Comparison) -> None:
    """Draws differ; compared is what the generator makes of many of them."""
    reference = case.arrays("outputs")
    for name, config in case.config.items():
        theirs, cells = reference[f"{name}_samples"], tuple(config["window"])
        keys = jax.random.split(jax.random.key(0), 256)
        make = functools.partial(cell_masks, kind="cube", ratio=config["mask_ratio"], cells=cells)
        ours = np.asarray(jax.jit(make)(keys))
        goal = cells_to_hide("cube", ratio=config["mask_ratio"], cells=cells)
        result.array(f"{name}: goal", goal, config["target_count"], rtol=0, atol=0)
        counts = ours.sum(axis=(1, 2, 3))
        result.array(f"{name}: most", counts.max(), config["counts_seen"][1], rtol=0, atol=0)
        # Five standard errors, of 64 draws of theirs and 256 of ours.
        error = 5 * counts.std() * np.sqrt(1 / len(theirs) + 1 / len(ours))
        result.array(f"{name}: mean", counts.mean(), config["mean_count"], rtol=0, atol=error)
        rates = [masks.mean(axis=(0, 2, 3)) for masks in (ours, theirs)]
        spread = ours.mean(axis=(2, 3)).std(axis=0)
        error = 5 * spread * np.sqrt(1 / len(theirs) + 1 / len(ours))
        share = np.abs(rates[0] - rates[1]) / error
        result.array(f"{name}: slots", share, np.zeros_like(share), rtol=0, atol=1)
