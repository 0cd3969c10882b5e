"""Learning rate per optimizer step, as in the released engines."""

import jax
import jax.numpy as jnp


def warmup_cosine(
    step: jax.Array | int,
    *,
    peak: float,
    floor: float,
    warmup_steps: int,
    total_steps: int,
    start: float = 0.0,
) -> jax.Array:
    """Linear warm-up, then half a cosine.

    The warm-up includes the peak as its last value and the cosine begins with the peak again, so
    it is used twice, and the floor is approached but never reached. The released scripts scale a
    warm-up rate and then never pass it on: warm-up starts at exactly 0.

    Args:
      step: index of the update, from 0.
      peak: highest learning rate.
      floor: value the cosine tends to.
      warmup_steps: number of warm-up updates; 0 for none.
      total_steps: number of all updates.
      start: learning rate of update 0.

    Returns:
      scalar; float32, or float64 under `jax.enable_x64`.

    Source: `cosine_scheduler` of the released VideoMAE engines (reference/videomae.md, 4.2).
    """
    step = jnp.asarray(step, jnp.result_type(float))
    warmup = start + (peak - start) * step / max(warmup_steps - 1, 1)
    if warmup_steps == 1:
        warmup = jnp.full_like(step, start)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup_steps, warmup, cosine)
