"""Stochastic depth: drops a residual branch for whole examples."""

import jax
import jax.numpy as jnp
import numpy as np


def drop_path_rates(rate: float, depth: int) -> np.ndarray:
    """Rate of every block, float32 [depth]: 0 at the first, `rate` at the last, linear between."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path must lie in [0, 1), got {rate}")
    return np.linspace(0.0, rate, depth, dtype=np.float32)


def drop_path(branch: jax.Array, keys: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Zeroes the branch of some examples and scales the others by 1 / (1 - rate).

    Args:
      branch: [B, ...].
      keys: typed PRNG keys [B], one per example, so that the layout of devices does not matter.
      rate: scalar in [0, 1); may be traced, so that blocks of different rates share one scan body.

    Source: as in the released VideoMAE (per sample, survivors scaled).
    """
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(keys)
    factor = jnp.where(kept, 1.0 / keep, 0.0).astype(branch.dtype)
    return branch * factor.reshape((-1,) + (1,) * (branch.ndim - 1))
