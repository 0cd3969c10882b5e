"""Layers of one transformer block. Parameters are float32; `dtype` is the dtype of the arithmetic.

Activations that the named remat policy may keep are marked with `checkpoint_name`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vmae_jax.models import init
from vmae_jax.ops.attention import (
    IMPLEMENTATIONS,
    attention,
    attention_weights,
    cosine_queries_keys,
)
from vmae_jax.ops.drop_path import drop_path
from vmae_jax.ops.keys import stream
from vmae_jax.ops.packed_attention import packed_attention

REMAT_POLICIES = ("none", "named", "full")
SAVED_NAMES = ("qkv", "pooled", "context", "attn_out", "mlp_hidden", "mlp_out")


def _quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), with which CLIP's networks were trained."""
    return x * jax.nn.sigmoid(1.702 * x)


GELUS = {
    "exact": functools.partial(jax.nn.gelu, approximate=False),
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick": _quick_gelu,
}


@dataclasses.dataclass(frozen=True)
class StackOptions:
    """How the blocks of a stack are built and run. The defaults are the released VideoMAE's.

    Attributes:
      qkv_bias: learn q_bias and v_bias.
      key_bias: learn k_bias too. Softmax does not see it, but files and decay lists do.
      qk_scale: factor on the scores; None: head_dim ** -0.5.
      cosine_attention: L2-normalised q and k with a learned scale per head.
      layer_scale: initial value of gamma_1 and gamma_2; 0: they do not exist.
      eps: epsilon of every LayerNorm.
      gelu: "exact" (erf), "tanh" (faster on TPUs, other numbers) or "quick" (CLIP's).
      drop_path: rate at the last block, 0 at the first, linear between.
      kernel_init: see `init.KERNEL_INITS`.
      bias_init: value that all biases begin with, those of norms included.
      attention: implementation, see ops/attention.py; resolved, not "auto".
      dtype: compute dtype, "bfloat16" or "float32".
      remat: "none", "named" (keeps matmul and attention outputs), "full" (keeps block inputs).
      scan: one compiled block for all; False unrolls: faster for small models, slow to compile.
    """

    qkv_bias: bool = True
    key_bias: bool = False
    qk_scale: float | None = None
    cosine_attention: bool = False
    layer_scale: float = 0.0
    eps: float = 1e-6
    gelu: str = "exact"
    drop_path: float = 0.0
    kernel_init: str = "xavier"
    bias_init: float = 0.0
    attention: str = "xla"
    dtype: str = "float32"
    remat: str = "named"
    scan: bool = True

    def __post_init__(self):
        choices = {
            "gelu": tuple(GELUS),
            "kernel_init": tuple(init.KERNEL_INITS),
            "attention": IMPLEMENTATIONS,
            "dtype": ("bfloat16", "float32"),
            "remat": REMAT_POLICIES,
        }
        for name, good in choices.items():
            if getattr(self, name) not in good:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(good)}"
                    + (" (choose_attention resolves 'auto')" if name == "attention" else "")
                )
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path} must lie in [0, 1)")
        if self.key_bias and not self.qkv_bias:
            raise ValueError("key_bias=True needs qkv_bias=True: q, k and v have their biases")
        if self.cosine_attention and self.qk_scale is not None:
            raise ValueError("cosine attention learns its scale; leave qk_scale at None")


class Linear(nnx.Module):
    """x @ kernel [in, out] (+ bias [out])."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        kernel_init: init.Initializer,
        bias_init: init.Initializer | None = init.zeros,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (width_in, width_out)))
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), (width_out,)))
        self.has_bias = bias_init is not None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return y + self.bias[...].astype(self.dtype) if self.has_bias else y


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis; statistics and arithmetic in float32, result in `dtype`.

    `bias` is the initial value of the learned bias.
    """

    def __init__(self, width: int, *, eps: float, dtype: str, bias: float = 0.0):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.full((width,), bias, jnp.float32))
        self.eps = eps
        self.dtype = dtype

    @jax.named_scope("norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x).mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.eps)
        x = x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return x.astype(self.dtype)


def block_linear(width_in: int, width_out: int, options: StackOptions, *, rngs: nnx.Rngs) -> Linear:
    """A linear layer of a block, as its options say."""
    return Linear(
        width_in,
        width_out,
        kernel_init=init.KERNEL_INITS[options.kernel_init],
        bias_init=init.constant(options.bias_init),
        dtype=options.dtype,
        rngs=rngs,
    )


def block_norm(width: int, options: StackOptions) -> LayerNorm:
    """A norm of a block, as its options say."""
    return LayerNorm(width, eps=options.eps, dtype=options.dtype, bias=options.bias_init)


class QKV(nnx.Module):
    """The fused projection: one kernel [D, 3*heads*head_dim], q then k then v."""

    def __init__(self, width: int, inner: int, *, kernel_init: init.Initializer, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (width, 3 * inner)))


class Attention(nnx.Module):
    """Multi-head self-attention with separate biases of q and v, and of k where asked for.

    As released, head_dim = width // heads also where heads do not divide the width; the inner
    width is then heads * head_dim.
    """

    def __init__(self, width: int, heads: int, options: StackOptions, *, rngs: nnx.Rngs):
        if not 1 <= heads <= width:
            raise ValueError(f"{heads} heads do not fit a width of {width}")
        self.heads, self.head_dim = heads, width // heads
        inner = self.heads * self.head_dim
        qkv_init = init.QKV_INITS[options.kernel_init]
        self.qkv = QKV(width, inner, kernel_init=qkv_init, rngs=rngs)
        if options.qkv_bias:
            self.q_bias = nnx.Param(jnp.full((inner,), options.bias_init, jnp.float32))
            self.v_bias = nnx.Param(jnp.full((inner,), options.bias_init, jnp.float32))
        if options.key_bias:
            self.k_bias = nnx.Param(jnp.full((inner,), options.bias_init, jnp.float32))
        if options.cosine_attention:
            self.scale = nnx.Param(jnp.full((heads,), math.log(10.0), jnp.float32))
        self.proj = block_linear(inner, width, options, rngs=rngs)
        self.options = options

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.options.attention == "packed" and not self.options.cosine_attention:
            context = self._packed(x)
        else:
            context = self._separate(x)
        return checkpoint_name(self.proj(checkpoint_name(context, "context")), "attn_out")

    def weights(self, x: jax.Array, *, queries: int | None = None) -> jax.Array:
        """How much each token (row) takes of each other, float32 [B, heads, N, N].

        To look at: the layer itself may use an implementation that never holds them. `queries`
        leaves it at the rows of so many first tokens, [B, heads, queries, N].
        """
        q, k, _ = self._project(x, queries=queries)
        return attention_weights(q, k, scale=self._scale())

    def _scale(self) -> float:
        if self.options.cosine_attention:
            return 1.0
        # 0 means the default, as in the released code.
        return self.options.qk_scale or self.head_dim**-0.5

    def _packed(self, x: jax.Array) -> jax.Array:
        dtype, bias = self.options.dtype, None
        if self.options.qkv_bias:
            q, k, v = self._biases()
            bias = jnp.concatenate([q, jnp.zeros_like(q) if k is None else k, v])
        qkv = x.astype(dtype) @ self.qkv.kernel[...].astype(dtype)
        return packed_attention(qkv, bias, heads=self.heads, scale=self._scale())

    def _biases(self) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
        if not self.options.qkv_bias:
            return None, None, None
        k_bias = self.k_bias[...] if self.options.key_bias else None
        return self.q_bias[...], k_bias, self.v_bias[...]

    def _separate(self, x: jax.Array) -> jax.Array:
        q, k, v = self._project(x)
        context = attention(q, k, v, scale=self._scale(), impl=self.options.attention)
        return context.reshape(*x.shape[:2], -1)

    def _project(
        self, x: jax.Array, *, queries: int | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        # Three matmuls rather than one and a split: each result gets the layout attention wants.
        dtype = self.options.dtype
        kernels = jnp.split(self.qkv.kernel[...].astype(dtype), 3, axis=1)
        projected = []
        for tokens, kernel, bias in zip(
            (x[:, :queries], x, x), kernels, self._biases(), strict=True
        ):
            y = tokens.astype(dtype) @ kernel
            y = y if bias is None else y + bias.astype(dtype)
            y = y.reshape(*tokens.shape[:2], self.heads, self.head_dim)
            projected.append(checkpoint_name(y, "qkv"))
        q, k, v = projected
        if self.options.cosine_attention:
            q, k = cosine_queries_keys(q, k, self.scale[...])
        return q, k, v


class Mlp(nnx.Module):
    """Linear, GELU, Linear; `width_out` wide in the end (None: as wide as it came)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        options: StackOptions,
        *,
        width_out: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.fc1 = block_linear(width, hidden, options, rngs=rngs)
        self.fc2 = block_linear(hidden, width_out or width, options, rngs=rngs)
        self.gelu = options.gelu

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = checkpoint_name(self.fc1(x), "mlp_hidden")
        return checkpoint_name(self.fc2(GELUS[self.gelu](hidden)), "mlp_out")


class Block(nnx.Module):
    """Pre-norm transformer block: x += gamma_1 * attn(norm1(x)); x += gamma_2 * mlp(norm2(x))."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, options: StackOptions, *, rngs: nnx.Rngs
    ):
        self.norm1 = block_norm(width, options)
        self.attn = Attention(width, heads, options, rngs=rngs)
        self.norm2 = block_norm(width, options)
        # int() truncates, as released: 512 * 48/11 -> 2234.
        self.mlp = Mlp(width, int(width * mlp_ratio), options, rngs=rngs)
        self.layer_scale = options.layer_scale > 0
        if self.layer_scale:
            self.gamma_1 = nnx.Param(jnp.full((width,), options.layer_scale, jnp.float32))
            self.gamma_2 = nnx.Param(jnp.full((width,), options.layer_scale, jnp.float32))

    def __call__(
        self, x: jax.Array, *, rate: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, N, D]; `rate` (scalar) and `keys` [B] switch stochastic depth on."""
        attn = self.attn(self.norm1(x))
        if self.layer_scale:
            attn = attn * self.gamma_1[...].astype(attn.dtype)
        x = x + self._dropped(attn, rate, keys, 0)
        mlp = self.mlp(self.norm2(x))
        if self.layer_scale:
            mlp = mlp * self.gamma_2[...].astype(mlp.dtype)
        return x + self._dropped(mlp, rate, keys, 1)

    def attention(self, x: jax.Array, *, queries: int | None = None) -> jax.Array:
        """Attention weights [B, heads, N, N] of the tokens [B, N, D] that enter the block.

        `queries`: see `Attention.weights`.
        """
        return self.attn.weights(self.norm1(x), queries=queries)

    @staticmethod
    def _dropped(branch, rate, keys, which):
        if keys is None:
            return branch
        return drop_path(branch, stream(keys, which), rate)
