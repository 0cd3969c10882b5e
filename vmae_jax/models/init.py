"""Initialisers as the released PyTorch code draws them.

Source: reference tables of VideoMAE, VideoMAE V2 and MAE-ST (mae_st.md, sections 0 and 1.7).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def xavier_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """U(+-sqrt(6 / (in + out))) of an [in, out] kernel; for qkv, out is all three."""
    return _uniform(key, shape, math.sqrt(6.0 / (shape[0] + shape[1])))


def xavier_uniform_thirds(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A fused qkv kernel [in, 3*out] of three that are drawn as matrices of their own."""
    width_in, width_out = shape
    thirds = [xavier_uniform(k, (width_in, width_out // 3)) for k in jax.random.split(key, 3)]
    return jnp.concatenate(thirds, axis=1)


def torch_uniform(key: jax.Array, shape: tuple[int, ...], *, fan_in: int) -> jax.Array:
    """PyTorch's default for linear and convolution weights and biases: U(+-1/sqrt(fan_in))."""
    return _uniform(key, shape, 1.0 / math.sqrt(fan_in))


def normal_002(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal of deviation 0.02. Released as truncated at an absolute 2, which is 100 deviations."""
    return 0.02 * jax.random.normal(key, shape, jnp.float32)


def mask_token(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal of deviation 0.02 cut at +-0.02, one deviation, as the released wrapper cuts it."""
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, jnp.float32)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.zeros(shape, jnp.float32)


def constant(value: float) -> Initializer:
    """All entries alike."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def by_fan_in(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`torch_uniform` of an [in, out] kernel."""
    return torch_uniform(key, shape, fan_in=shape[0])


def _uniform(key, shape, bound):
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


KERNEL_INITS: dict[str, Initializer] = {
    "xavier": xavier_uniform,
    "xavier_thirds": xavier_uniform,
    "normal": normal_002,
}
# Of the fused projection to queries, keys and values.
QKV_INITS = KERNEL_INITS | {"xavier_thirds": xavier_uniform_thirds}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How the networks of one code base begin.

    Not named here: biases are zero, norms one and zero, learned positions and class tokens normal
    of deviation 0.02, and the bias of the patch embedding is PyTorch's default in all of them.

    Attributes:
      kernels: of blocks and of the decoder's head, by name in `KERNEL_INITS`.
      encoder_bias: value of all biases in the encoder's blocks, those of norms included.
      patch_embed: kernel of the patch embedding.
      to_decoder: kernel of the projection between the stacks.
      to_decoder_bias: whether its bias, where it has one, is PyTorch's default rather than zero.
      mask_token: the token in place of what is hidden.
    """

    kernels: str
    encoder_bias: float
    patch_embed: Initializer
    to_decoder: Initializer
    to_decoder_bias: bool
    mask_token: Initializer


SCHEMES = {
    # The released code never applies its own initialiser to embedding and projection: PyTorch's
    # default remains.
    "videomae": Scheme("xavier", 0.0, by_fan_in, by_fan_in, True, mask_token),
    # The MAE-ST repository. Queries, keys and values are three matrices there.
    "mae_st": Scheme("xavier_thirds", 0.0, xavier_uniform, xavier_uniform, False, normal_002),
    # PySlowFast, which trained MAE-ST's published weights.
    "slowfast": Scheme("normal", 0.02, normal_002, by_fan_in, True, normal_002),
}
