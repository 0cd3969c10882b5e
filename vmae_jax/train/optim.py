"""AdamW as released: what decays, how fast each layer learns, how gradients are clipped."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vmae_jax import rules

# The released factory exempts 1-D tensors, names ending in `.bias`, `mask_token` and, for cosine
# attention, names ending in `.scale`. Blocks are stacked here, so a bias is 2-D: names decide.
DECAY_RULES = (
    (r"(^|/)(bias|q_bias|v_bias|scale|gamma_1|gamma_2|mask_token|pos_embed|cls_token)$", False),
    (r"(^|/)kernel$", True),
)


def weight_decay_mask(params: Any) -> Any:
    """Marks the parameters that decay.

    Args:
      params: nested dict of arrays.

    Returns:
      the same structure of bools, True = decays.

    Raises:
      ValueError: a parameter that no rule of `DECAY_RULES` knows.
    """
    return rules.map_with_path(
        lambda path, _: rules.match(DECAY_RULES, path, what="weight-decay rule"), params
    )


def layer_decay_scales(params: Any, depth: int, decay: float) -> Any:
    """Learning-rate multiplier of each parameter of a classifier, `decay ** (depth + 1 - layer)`.

    Layer 0 is the patch embedding (and position, class and mask tokens), block k is layer k + 1,
    everything else (final norms, head) is layer depth + 1, with multiplier 1.

    Args:
      params: nested dict of arrays; blocks stacked on their leading axis.
      depth: number of blocks.
      decay: layer-wise decay, in (0, 1].

    Returns:
      the same structure; a float array that broadcasts against its parameter (for stacked blocks
      `[depth, 1, ...]`).

    Source: `LayerDecayValueAssigner` of the released code (reference/videomae.md, 5.4).
    """
    blocks = decay ** (depth - jnp.arange(depth, dtype=jnp.result_type(float)))

    def scale(path: str, leaf: jax.Array) -> jax.Array:
        if "blocks/" in path:
            return blocks.reshape(depth, *[1] * (leaf.ndim - 1))
        bottom = ("patch_embed", "pos_embed", "cls_token", "mask_token")
        layer = 0 if any(name in path for name in bottom) else depth + 1
        return jnp.asarray(decay ** (depth + 1 - layer), jnp.result_type(float))

    return rules.map_with_path(scale, params)


def adamw_direction(
    *,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    depth: int = 0,
) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step multiplies on from the schedule.

    A skipped (non-finite) update then leaves the moments and their count alone while the schedule
    goes on with the step number, as it does in the released engines.

    Args:
      betas, eps, weight_decay: of AdamW.
      layer_decay: see `layer_decay_scales`; a layer's rate multiplies its weight decay too.
      depth: blocks of the classifier, where `layer_decay` is not 1.
    """
    steps = [
        optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
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
