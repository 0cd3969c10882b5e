"""Random keys, one for each clip, so that a clip's draws depend on no other."""

import jax


def stream(keys: jax.Array | None, which: int | jax.Array) -> jax.Array | None:
    """Independent keys [B] for one use of the keys [B] of a batch; None stays None."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, which))(keys)
