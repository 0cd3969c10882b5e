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
    shape: str = "peak_twice",
) -> jax.Array:
    """Linear warm-up, then half a cosine, which approaches the floor and never reaches it.

    Args:
      step: index of the update, from 0.
      peak: highest learning rate.
      floor: value the cosine tends to.
      warmup_steps: number of warm-up updates; 0 for none.
      total_steps: number of all updates.
      start: learning rate of update 0, where there is a warm-up.
      shape: "peak_twice": the warm-up's last update has the peak, and so has the cosine's first
        (VideoMAE). "peak_once": the warm-up leads to the cosine's first update, which alone has
        the peak (MAE-ST, MaskFeat). "cosine_throughout": the cosine is measured from update 0, and
        the warm-up leads to its value where it takes over, below the peak (what PySlowFast does
        unless told otherwise).

    Returns:
      scalar; float32, or float64 under `jax.enable_x64`.

    Source: the released engines (reference/videomae.md, 4.2; mae_st.md, 4.2 and 4.3; maskfeat.md,
    8), the last two being functions of the epoch, with a fraction for the update within it.
    """
    step = jnp.asarray(step, jnp.result_type(float))
    begin = 0 if shape == "cosine_throughout" else warmup_steps

    def cosine(step: jax.Array | int) -> jax.Array:
        progress = (step - begin) / max(total_steps - begin, 1)
        return floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * progress))

    # The warm-up is the line from `start` that has the value `target` at update `meets`.
    target, meets = cosine(warmup_steps), warmup_steps
    if shape == "peak_twice":
        target, meets = peak, warmup_steps - 1
    warmup = start + (target - start) * step / max(meets, 1)
    return jnp.where(step < warmup_steps, warmup, cosine(step))
