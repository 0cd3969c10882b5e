"""Selects tokens by index arrays, clip by clip: local to a device when the batch is sharded."""

import jax
import jax.numpy as jnp


def gather(tokens: jax.Array, idx: jax.Array) -> jax.Array:
    """Picks tokens of each clip.

    Args:
      tokens: [B, N, ...], any dtype.
      idx: int32 [B, K], each in [0, N); out of range gives undefined values.

    Returns:
      [B, K, ...], in the order of `idx`.
    """
    _check(tokens, idx)
    expanded = idx.reshape(idx.shape + (1,) * (tokens.ndim - 2))
    return jnp.take_along_axis(tokens, expanded, axis=1, mode="promise_in_bounds")


def scatter(tokens: jax.Array, idx: jax.Array, num_tokens: int) -> jax.Array:
    """Inverse of `gather`: [B, K, ...] at `idx` [B, K] of zeros [B, num_tokens, ...]."""
    _check(tokens, idx)
    if tokens.shape[1] != idx.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens a clip for {idx.shape[1]} indices a clip")

    def place(clip: jax.Array, where: jax.Array) -> jax.Array:
        empty = jnp.zeros((num_tokens, *clip.shape[1:]), clip.dtype)
        return empty.at[where].set(clip, mode="promise_in_bounds")

    return jax.vmap(place)(tokens, idx)


def _check(tokens: jax.Array, idx: jax.Array) -> None:
    if tokens.ndim < 2 or idx.ndim != 2 or tokens.shape[0] != idx.shape[0]:
        raise ValueError(
            f"expected tokens [B, N, ...] and idx [B, K], got {tokens.shape} and {idx.shape}"
        )
