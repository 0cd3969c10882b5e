"""Draws numbers as colours, from black over red and orange to a light yellow."""

import jax
import jax.numpy as jnp

# Red, green, blue in [0, 1], at equal steps; brightness grows all the way.
_COLOURS = ((0.0, 0.0, 0.0), (0.3, 0.05, 0.4), (0.75, 0.2, 0.3), (1.0, 0.55, 0.1), (1.0, 1.0, 0.7))


def heat(values: jax.Array) -> jax.Array:
    """Colours of numbers.

    Args:
      values: any shape; 0 and less is black, 1 and more the lightest.

    Returns:
      float32 [..., 3] in [0, 1].
    """
    places = jnp.linspace(0.0, 1.0, len(_COLOURS))
    channels = [jnp.interp(values, places, jnp.array(c)) for c in zip(*_COLOURS, strict=True)]
    return jnp.stack(channels, axis=-1).astype(jnp.float32)
