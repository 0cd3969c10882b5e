"""Initialisers as the released PyTorch code draws them. Source: reference table of VideoMAE, V2."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def xavier_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """U(+-sqrt(6 / (in + out))) of an [in, out] kernel; for qkv, out is all three."""
    return _uniform(key, shape, math.sqrt(6.0 / (shape[0] + shape[1])))


def torch_uniform(key: jax.Array, shape: tuple[int, ...], *, fan_in: int) -> jax.Array:
    """PyTorch's default for linear and convolution weights and biases: U(+-1/sqrt(fan_in))."""
    return _uniform(key, shape, 1.0 / math.sqrt(fan_in))


def normal_002(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal of deviation 0.02. Released as truncated at an absolute 2, which is 100 deviations."""
    return 0.02 * jax.random.normal(key, shape, jnp.float32)


def mask_token(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal of deviation 0.02 cut at +-0.02, one deviation, as the released wrapper cuts it."""
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, jnp.float32)


def bias_002(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The constant 0.02, with which MViT's biases of linear layers and norms begin."""
    del key
    return jnp.full(shape, 0.02, jnp.float32)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.zeros(shape, jnp.float32)


def _uniform(key, shape, bound):
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


KERNEL_INITS: dict[str, Initializer] = {"xavier": xavier_uniform, "normal": normal_002}
