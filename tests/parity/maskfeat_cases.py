"""Runs golden cases of MaskFeat's network, targets and masks through our code, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden import Case, Comparison
from mvit_cases import OPTIONS, fields_of, spec_of
from videomae_cases import compare, imported

from vmae_jax.convert.mvit import mvit_table
from vmae_jax.models.functional import functional
from vmae_jax.models.maskfeat import MaskedFeatures
from vmae_jax.models.mvit import MViT, block_shapes
from vmae_jax.ops.block_masks import cell_masks, cells_to_hide, to_tokens
from vmae_jax.ops.hog import hog, hog_targets
from vmae_jax.ops.losses import masked_mse, whole_patch_targets
from vmae_jax.ops.patches import patchify


def pretrain(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    spec, fields = spec_of(config), fields_of(config)
    clip = jnp.asarray(rearrange(inputs["clip"], "b c t h w -> b t h w c"))
    last = block_shapes(spec, fields["grid"])[-1]

    def build(rngs):
        encoder = MViT(spec, OPTIONS, rngs=rngs, **fields)
        return MaskedFeatures(
            encoder,
            class_token=fields["class_token"],
            stem_width=encoder.width(0),
            width=last.width_out,
            values=weights["pred_head.projections.0.bias"].size,
            options=OPTIONS,
            rngs=rngs,
        )

    net, table = functional(build), mvit_table()
    params = imported(weights, table, net)
    patch = tuple(a // b for a, b in zip(clip.shape[1:4], last.grid_out, strict=True))
    if config["MASK.PRED_HOG"]:
        target = hog_targets(clip, patch)
    else:
        patches = patchify(clip[:, :: patch[0]], (1, *patch[1:]))
        target = whole_patch_targets(patches, normalize=True)
    stem_hidden = to_tokens(jnp.asarray(inputs["mask"]), fields["grid"])
    hidden = to_tokens(jnp.asarray(inputs["mask"]), last.grid_out)
    chosen = np.nonzero(hidden)

    def run(params):
        module = net.module(params)
        pred = module(clip, stem_hidden)
        total, count = masked_mse(pred, target, hidden)
        outputs = {
            "patch_embed": module.encoder.patch_embed(clip),
            "block_out": module.encoder(
                clip, hidden=stem_hidden, mask_token=module.mask_token[...]
            ),
            "feat_mask_0": hidden,
            "pred_0": pred[chosen],
            "target_0": target[chosen],
            "loss_0": total / count,
            "loss": total / count,
        }
        return outputs["loss"], outputs

    compare(case, result, run, params, table)


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
