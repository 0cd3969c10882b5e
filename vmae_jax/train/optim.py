"""AdamW as released: what decays, how fast each layer learns, how gradients are clipped."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmae_jax import rules

# What a parameter is, by its name: blocks are stacked here, so a bias is 2-D, shapes do not tell.
# VideoMAE exempts vectors, tokens and tables from decay; MAE-ST and MaskFeat only vectors.
KINDS = (
    (r"(^|/)(bias|[qkv]_bias)$", "bias"),
    (r"(^|/)(scale|gamma_1|gamma_2)$", "scale"),
    (r"(^|/)((cls|mask)_token|pos_embed(_\w+)?|rel_pos_[thw])$", "table"),
    (r"(^|/)kernel$", "kernel"),
)


def weight_decay_mask(
    params: Any, *, tables: bool = False, scales: bool = False, fixed: Sequence[str] = ()
) -> Any:
    """Marks the parameters that decay: kernels, and on demand others.

    Args:
      params: nested dict of arrays.
      tables: class and mask tokens and tables of positions decay too.
      scales: those of norms and of layer scale decay too.
      fixed: regexes of the paths that get no gradient, and so never decay.

    Returns:
      the same structure of bools, True = decays.

    Raises:
      ValueError: a parameter that no rule of `KINDS` knows.
    """
    decays = {"kernel": True, "table": tables, "scale": scales, "bias": False}

    def decaying(path: str, _: Any) -> bool:
        kind = rules.match(KINDS, path, what="weight-decay rule")
        return decays[kind] and not any(re.search(pattern, path) for pattern in fixed)

    return rules.map_with_path(decaying, params)


def layer_decay_scales(params: Any, depth: int, decay: float) -> Any:
    """Learning-rate multiplier of each parameter of a classifier, `decay ** (depth + 1 - layer)`.

    Layer 0 is the patch embedding (and position, class and mask tokens), block k is layer k + 1,
    everything else (final norms, head) is layer depth + 1, with multiplier 1.

    Args:
      params: nested dict of arrays. Blocks are stacked on their leading axis: under `blocks/` all
        of them, under `blocks/04/` those from block 4 on.
      depth: number of blocks in all.
      decay: layer-wise decay, in (0, 1].

    Returns:
      the same structure; a float array that broadcasts against its parameter (for stacked blocks
      `[blocks, 1, ...]`).

    Source: `LayerDecayValueAssigner` of the released code (reference/videomae.md, 5.4); MAE-ST's
    and PySlowFast's are the same.
    """

    def scale(path: str, leaf: jax.Array) -> jax.Array:
        if blocks := _BLOCKS.search(path):
            layers = int(blocks[1] or 0) + 1 + np.arange(leaf.shape[0])
            layers = layers.reshape(-1, *[1] * (leaf.ndim - 1))
        else:
            bottom = ("patch_embed", "pos_embed", "cls_token", "mask_token")
            layers = 0 if any(name in path for name in bottom) else depth + 1
        return jnp.asarray(decay ** (depth + 1 - layers), jnp.result_type(float))

    return rules.map_with_path(scale, params)


_BLOCKS = re.compile(r"(?:^|/)blocks/(?:(\d+)/)?")


def adamw_direction(
    *,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    decay_tables: bool = False,
    decay_scales: bool = False,
    fixed: Sequence[str] = (),
    layer_decay: float = 1.0,
    depth: int = 0,
) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step multiplies on from the schedule.

    A skipped (non-finite) update then leaves the moments and their count alone while the schedule
    goes on with the step number, as it does in the released engines.

    Args:
      betas, eps, weight_decay: of AdamW.
      decay_tables, decay_scales, fixed: what decays beside kernels, and what does not; see
        `weight_decay_mask`.
      layer_decay: see `layer_decay_scales`; a layer's rate multiplies its weight decay too.
      depth: blocks of the classifier, where `layer_decay` is not 1.
    """
    decays = functools.partial(
        weight_decay_mask, tables=decay_tables, scales=decay_scales, fixed=fixed
    )
    steps = [
        optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decays),
    ]
    if layer_decay != 1.0:
        steps.append(_scale_by_layer(depth, layer_decay))
    return optax.chain(*steps)


def _scale_by_layer(depth: int, decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        scales = layer_decay_scales(params, depth, decay)
        return jax.tree.map(jnp.multiply, updates, scales)

    return optax.stateless(scale)


def clip_factor(norm: jax.Array, max_norm: float) -> jax.Array:
    """Factor that brings gradients of norm `norm` down to `max_norm`; 1 where that is 0.

    The 1e-6 is PyTorch's, and not negligible beside ViT-g's limit of 0.02.
    """
    if not max_norm:
        return jnp.ones_like(norm)
    return jnp.minimum(1.0, max_norm / (norm + 1e-6))
