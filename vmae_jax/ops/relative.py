"""Positions of queries relative to keys, learned for each axis of a grid by itself.

Queries and keys may be pooled differently: of an axis of q queries and k keys each step of the
coarser side counts as many steps of the finer. Source: MViTv2 (arXiv:2112.01526) and its released
code (reference: maskfeat.md, 1.5).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def table_rows(queries: int, keys: int) -> int:
    """Distances along an axis that a table has rows for."""
    return 2 * max(queries, keys) - 1


@functools.lru_cache(maxsize=256)
def relative_weights(queries: int, keys: int, rows: int) -> np.ndarray:
    """How the vector for each query and key of an axis is mixed of a table's rows.

    A table of other length than `table_rows` is resampled linearly (half-pixel centres, borders
    repeated): tables are sized by rounding the grid down where pooling rounds up.

    Returns:
      float32 [queries, keys, rows], rows of weights that sum to one; read-only.
    """
    wanted = table_rows(queries, keys)
    # In float32 as released: with ratios such as 7.8, rounding decides what is truncated.
    per_query, per_key = np.float32(max(keys / queries, 1.0)), np.float32(max(queries / keys, 1.0))
    i, j = np.arange(queries, dtype=np.float32), np.arange(keys, dtype=np.float32)
    distance = i[:, None] * per_query - j[None] * per_key + np.float32(keys - 1) * per_key
    weights = linear_weights(rows, wanted)[distance.astype(np.int64)]
    weights.setflags(write=False)
    return weights


def linear_weights(rows: int, wanted: int) -> np.ndarray:
    """Rows of weights that make `wanted` samples from `rows`, float32 [wanted, rows]."""
    if rows == wanted:
        return np.eye(rows, dtype=np.float32)
    centre = np.clip((np.arange(wanted) + 0.5) * rows / wanted - 0.5, 0, rows - 1)
    return np.maximum(1 - np.abs(centre[:, None] - np.arange(rows)), 0).astype(np.float32)


def relative_scores(q: jax.Array, table: jax.Array, *, axis: int, keys: int) -> jax.Array:
    """What the place of a key along one axis adds to its score.

    Args:
      q: queries [B, T, H, W, heads, head_dim], not scaled.
      table: [rows, head_dim], shared by all heads.
      axis: of q, 1 to 3.
      keys: of that axis.

    Returns:
      [B, T, H, W, heads, keys] in the dtype of q.
    """
    weights = jnp.asarray(relative_weights(q.shape[axis], keys, table.shape[0]))
    vectors = jnp.einsum("qkr,rc->qkc", weights, table.astype(jnp.float32)).astype(q.dtype)
    place = "thw"[axis - 1]
    return jnp.einsum(f"bthwnc,{place}kc->bthwnk", q, vectors)


@functools.lru_cache(maxsize=64)
def places(grid: tuple[int, int, int]) -> np.ndarray:
    """Where each token of a grid lies along each axis, as float32 [t*h*w, t + h + w].

    Three ones a row; the product with scores for the places of each axis spreads them over tokens.
    """
    index = np.indices(grid).reshape(3, -1)
    marks = [np.eye(n, dtype=np.float32)[i] for n, i in zip(grid, index, strict=True)]
    table = np.concatenate(marks, axis=1)
    table.setflags(write=False)
    return table
