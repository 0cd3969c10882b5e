"""Losses as sums and weights in float32, and the pixel target they are measured against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vmae_jax.ops.patches import Order


class Ratio(NamedTuple):
    """A loss as two sums: `total / weight` over the whole batch is the number in the papers.

    Sums add up over devices and micro-batches; means of means do not when weights vary by clip.
    """

    total: jax.Array
    weight: jax.Array


def pixel_targets(
    patches: jax.Array, *, channels: int, normalize: bool, order: Order = "pixels"
) -> jax.Array:
    """Regression targets from pixels.

    Args:
      patches: [B, M, P] on the [0, 1] scale; only the tokens that are decoded.
      channels: C; P = pixels * C.
      normalize: standardise each patch and channel by its own mean and deviation.
      order: of the values of a patch.

    Returns:
      float32 [B, M, P], in the same order.

    Source: VideoMAE's released engine: unbiased variance over the pixels of one patch and channel,
    1e-6 added to the standard deviation (not to the variance).
    """
    if patches.shape[-1] % channels:
        raise ValueError(f"{patches.shape[-1]} values a patch are not a multiple of {channels}")
    pixels = patches.shape[-1] // channels
    # float32: for a nearly flat patch, bf16 rounding becomes the signal once divided by the std.
    patches = patches.astype(jnp.float32)
    if not normalize:
        return patches
    if pixels < 2:
        raise ValueError("a patch of one pixel has no deviation; set normalize=False")
    if order == "planes":
        planes = [_standardised(plane) for plane in jnp.split(patches, channels, axis=-1)]
        return jnp.concatenate(planes, axis=-1)
    planes = _standardised(rearrange(patches, "b m (p c) -> b m c p", c=channels))
    return rearrange(planes, "b m c p -> b m (p c)")


def whole_patch_targets(patches: jax.Array, *, normalize: bool) -> jax.Array:
    """Regression targets from patches as the network sees them, over all their values at once.

    Args:
      patches: [B, M, P] of the normalised clip, values in any order.
      normalize: standardise each patch by the mean and deviation of all its values.

    Returns:
      float32 [B, M, P], in the same order.

    Source: the released models of MAE-ST (reference: mae_st.md, 3) and, for its ablation, of
    MaskFeat: channels are not told apart, the variance is unbiased, and 1e-6 is added to it.
    """
    # float32: for a nearly flat patch, bf16 rounding becomes the signal once divided by the std.
    patches = patches.astype(jnp.float32)
    if not normalize:
        return patches
    if patches.shape[-1] < 2:
        raise ValueError("a patch of one value has no deviation; set normalize=False")
    centred = patches - patches.mean(axis=-1, keepdims=True)
    variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    return centred * jax.lax.rsqrt(variance + 1e-6)


def _standardised(x: jax.Array) -> jax.Array:
    """Zero mean and unit deviation over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.sum(x * x, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return x / (jnp.sqrt(variance) + 1e-6)


def masked_mse(pred: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> Ratio:
    """Squared error, averaged over the values of each token, summed over tokens.

    Args:
      pred, target: [B, M, P]; computed in float32.
      weight: [B, M], 1 (or True) where the token carries loss; None: all do.

    Returns:
      Ratio(total, weight); total / weight is the released loss.

    Source: VideoMAE (mean over masked tokens); VideoMAE V2 (tokens that the decoder predicts and
    that were hidden from the encoder).
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred {pred.shape} and target {target.shape} differ in shape")
    error = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    if weight is None:
        weight = jnp.ones_like(error)
    if weight.shape != error.shape:
        raise ValueError(f"weight {weight.shape} does not match the tokens {error.shape}")
    weight = weight.astype(jnp.float32)
    return Ratio(jnp.sum(error * weight), jnp.sum(weight))


ALIGNMENTS = ("l2", "mse", "smooth_l1")


def unit_vectors(x: jax.Array) -> jax.Array:
    """Divides by the L2 norm over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def alignment(student: jax.Array, teacher: jax.Array, *, kind: str) -> Ratio:
    """How far the student's tokens are from the teacher's: mean of layers, summed over tokens.

    Args:
      student, teacher: [K, B, V, D] of K layers; computed in float32.
      kind: "l2": 2 - 2 cos of unit vectors, their squared distance, summed over the values. "mse",
        "smooth_l1" (which turns from square to line at 1): averaged over the values.

    Returns:
      Ratio; total / weight is the mean over layers, clips and tokens.

    Source: the released engine of UMT (arXiv:2303.16058).
    """
    if student.shape != teacher.shape or student.ndim != 4:
        raise ValueError(
            f"expected two of one shape [K, B, V, D]: {student.shape}, {teacher.shape}"
        )
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    if kind == "l2":
        errors = 2.0 - 2.0 * jnp.sum(student * teacher, axis=-1)
    elif kind == "mse":
        errors = jnp.square(student - teacher).mean(axis=-1)
    elif kind == "smooth_l1":
        away = jnp.abs(student - teacher)
        errors = jnp.where(away < 1.0, 0.5 * away * away, away - 0.5).mean(axis=-1)
    else:
        raise ValueError(f"unknown alignment {kind!r}; choose one of {', '.join(ALIGNMENTS)}")
    errors = errors.mean(axis=0)
    return Ratio(errors.sum(), jnp.float32(errors.size))


def soft_target_cross_entropy(logits: jax.Array, targets: jax.Array) -> Ratio:
    """Cross-entropy against distributions [B, K] (mixup, label smoothing)."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    losses = -jnp.sum(targets.astype(jnp.float32) * log_probs, axis=-1)
    return Ratio(losses.sum(), jnp.float32(losses.size))


def distillation(logits: jax.Array, answers: jax.Array, *, temperature: float) -> Ratio:
    """KL(teacher || student) at a temperature.

    Args:
      logits: [B, K], the student's.
      answers: [B, K], the teacher's probabilities at that temperature.

    Returns:
      Ratio over clips; not multiplied by temperature ** 2. Source: arXiv:2106.05237, section 2.
    """
    answers = answers.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    losses = jnp.sum(jax.scipy.special.xlogy(answers, answers) - answers * log_probs, axis=-1)
    return Ratio(losses.sum(), jnp.float32(losses.size))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> Ratio:
    """Cross-entropy against integer labels [B]."""
    return label_smoothing_cross_entropy(logits, labels, smoothing=0.0)


def label_smoothing_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.1
) -> Ratio:
    """(1 - smoothing) * cross-entropy + smoothing * mean over classes of -log p. Source: timm."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    losses = (1.0 - smoothing) * nll - smoothing * log_probs.mean(axis=-1)
    return Ratio(losses.sum(), jnp.float32(losses.size))
