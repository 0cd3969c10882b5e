"""The one entry point to attention, and the rule that picks an implementation for a stack.

q, k, v are [B, N, heads, head_dim]; attention is bidirectional over all N tokens of a clip.
Implementations:
  xla      matmuls and scores in the compute dtype, softmax arithmetic in float32.
  xla_f32  everything in float32 at the highest matmul precision; the reference for parity.
  cudnn    fused kernel on NVIDIA GPUs (bfloat16 or float16), asked for by name because JAX's
           default never selects it; head sizes that are multiples of 8 need no padding.
  packed   our Pallas kernel on TPUs: a whole clip at a time, no padding; see packed_attention.py.
           It takes q, k and v side by side, which the layers hand it without a detour.
  splash   JAX's Pallas kernel on TPUs, for sequences that are too long for `packed`; pads the
           tokens to the block size, never the head.
"""

import functools

import jax
import jax.numpy as jnp

from vmae_jax.chips import Chip
from vmae_jax.ops.packed_attention import packed_attention, packed_vmem_bytes
from vmae_jax.ops.per_device import per_device

IMPLEMENTATIONS = ("xla", "xla_f32", "cudnn", "packed", "splash")
_VMEM_SHARE = 0.8  # of it that one kernel may ask for
_LONG = 512  # tokens from which scores in HBM cost more than splash's padding


def choose_attention(
    impl: str, *, chip: Chip, dtype: str, tokens: int, heads: int, head_dim: int
) -> str:
    """Resolves "auto" and checks an explicit choice against the chip.

    Args:
      impl: "auto" or one of IMPLEMENTATIONS.
      chip: where it will run. cuDNN's flash kernel needs capability 8.0 (Ampere).
      dtype: compute dtype, e.g. "bfloat16".
      tokens, heads, head_dim: of the stack; cuDNN takes widths that are multiples of 8.

    Returns:
      one of IMPLEMENTATIONS.

    Raises:
      ValueError: an unknown name, or an implementation that cannot run there.
    """
    half = str(dtype) in ("bfloat16", "float16")
    needed = packed_vmem_bytes(tokens, heads, head_dim, 2 if half else 4) / 2**20
    fits = needed <= _VMEM_SHARE * (chip.vmem_mib or 0.0)
    if impl == "auto":
        recent = chip.capability is None or chip.capability >= 8.0
        if chip.platform == "gpu" and half and recent and head_dim % 8 == 0:
            return "cudnn"
        if chip.platform == "tpu" and half and fits:
            return "packed"
        if chip.platform == "tpu" and tokens >= _LONG:
            return "splash"
        return "xla"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown attention {impl!r}; choose auto or one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl == "cudnn" and not (chip.platform == "gpu" and half):
        raise ValueError(
            f"attention 'cudnn' needs a GPU and bfloat16 or float16, got {chip.platform} and "
            f"{dtype}; use 'auto'"
        )
    if impl in ("packed", "splash") and chip.platform != "tpu":
        raise ValueError(f"attention {impl!r} needs a TPU, got {chip.platform}; use 'auto'")
    if impl == "packed" and not fits:
        raise ValueError(
            f"attention 'packed' needs {needed:.0f} MiB of the memory inside a {chip.name}, which "
            f"has {chip.vmem_mib or 0:.0f}, for {tokens} tokens in {heads} heads; use 'auto'"
        )
    return impl


def choose_pooled_attention(impl: str) -> str:
    """The same for stacks whose keys are pooled: as yet XLA alone takes other keys than queries.

    Raises:
      ValueError: another implementation.
    """
    good = ("xla", "xla_f32")
    if impl == "auto":
        return "xla"
    if impl not in good:
        raise ValueError(
            f"attention {impl!r} does not take pooled keys; choose auto or one of {', '.join(good)}"
        )
    return impl


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, impl: str = "xla"
) -> jax.Array:
    """softmax(scale * q k^T) v over all tokens of each clip.

    Args:
      q: [B, N, heads, head_dim].
      k, v: of as many keys as there may be, [B, M, heads, head_dim] and [B, M, heads, value_dim],
        in the dtype of q. The fused kernels want all three of one shape.
      scale: static factor on the scores, usually head_dim ** -0.5.
      impl: a concrete implementation; resolve "auto" with `choose_attention` first.

    Returns:
      [B, N, heads, value_dim], dtype of q.
    """
    alike = q.shape == k.shape == v.shape
    fits = q.ndim == k.ndim == 4 and k.shape[:3] == v.shape[:3] and q.shape[2:] == k.shape[2:]
    if not (alike or (fits and impl.startswith("xla"))):
        raise ValueError(
            f"expected q, k, v of one shape [B, N, heads, head_dim], or of other keys for 'xla', "
            f"got {q.shape}, {k.shape}, {v.shape} for {impl!r}"
        )
    if impl == "xla":
        return _xla(q, k, v, scale, precision=None)
    if impl == "xla_f32":
        full = (x.astype(jnp.float32) for x in (q, k, v))
        return _xla(*full, scale, precision=jax.lax.Precision.HIGHEST).astype(q.dtype)
    if impl == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    if impl == "packed":
        packed = jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in (q, k, v)], axis=-1)
        return packed_attention(packed, heads=q.shape[2], scale=scale).reshape(q.shape)
    if impl == "splash":
        return splash(q, k, v, scale=scale)
    raise ValueError(
        f"unknown attention {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}"
        + (" (resolve 'auto' with choose_attention)" if impl == "auto" else "")
    )


def attention_weights(q: jax.Array, k: jax.Array, *, scale: float) -> jax.Array:
    """softmax(scale * q k^T), which `attention` applies to the values, written out to look at.

    Args:
      q, k: [B, N, heads, head_dim]; there may be fewer queries than keys.
      scale: static factor on the scores.

    Returns:
      float32 [B, heads, N, N], a row for each query; rows sum to one.
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(scores, axis=-1)


def cosine_queries_keys(
    q: jax.Array, k: jax.Array, log_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """q and k for cosine attention; pass them to `attention` with scale=1.

    Args:
      q, k: [B, N, heads, head_dim].
      log_scale: [heads], learned; clamped at 4.6052 (about ln 100) and exponentiated.

    Source: VideoMAE V2's released code (off in every published model).
    """
    factor = jnp.exp(jnp.minimum(log_scale.astype(jnp.float32), 4.6052))
    return (_unit(q) * factor[:, None]).astype(q.dtype), _unit(k).astype(k.dtype)


def _unit(x: jax.Array) -> jax.Array:
    """Divides by the L2 norm over the last axis, or by 1e-12 if that is larger; float32."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _xla(q, k, v, scale, *, precision):
    # Scores stay in the compute dtype: they are the largest tensor of a decoder and bound by HBM.
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k, precision=precision)
    return jnp.einsum("bhqk,bkhd->bqhd", _softmax(scores), v, precision=precision)


@jax.custom_vjp
def _softmax(scores: jax.Array) -> jax.Array:
    """Softmax over the last axis: arithmetic in float32, result and residual in the input dtype."""
    return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)


def _softmax_fwd(scores):
    probs = _softmax(scores)
    return probs, probs


def _softmax_bwd(probs, grad):
    dtype = probs.dtype
    probs, grad = probs.astype(jnp.float32), grad.astype(jnp.float32)
    product = probs * grad
    return ((product - probs * product.sum(axis=-1, keepdims=True)).astype(dtype),)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


_LANES = 128  # splash works on multiples of a TPU vector register's lanes
_MAX_BLOCK = 1024  # scores of one block: 1024 * 1024 float32 = 4 MiB of 16 MiB scoped VMEM


def splash_block(num_tokens: int) -> tuple[int, int]:
    """(padded length, block) for `num_tokens`: few blocks, little padding.

    The block is the padded length where that fits on the chip, else the largest part of it.
    """
    lanes = -(-num_tokens // _LANES)
    blocks = -(-lanes * _LANES // _MAX_BLOCK)
    block = -(-lanes // blocks) * _LANES
    return block * blocks, block


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, interpret: bool = False
) -> jax.Array:
    """TPU splash attention; under a mesh each device runs the kernel on its own clips.

    Args:
      interpret: run the kernel's program in plain JAX on any machine (slow; for tests).
    """
    return per_device(functools.partial(_splash_local, scale=scale, interpret=interpret), q, k, v)


def _splash_local(q, k, v, *, scale, interpret):
    # Imported here: the module is experimental and only TPU runs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    tokens, heads = q.shape[1:3]
    padded, block = splash_block(tokens)
    sizes = lib.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    mask = lib.MultiHeadMask([lib.FullMask((padded, padded))] * heads)
    kernel = lib.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    segments = None
    if padded != tokens:
        # Padding is a segment of its own: real tokens never attend to it, nor it to them.
        segment = (jnp.arange(padded) >= tokens).astype(jnp.int32)
        segments = lib.SegmentIds(q=segment, kv=segment)

    def prepare(x):
        x = jnp.moveaxis(x, 1, 2)  # [B, heads, N, head_dim]
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - tokens), (0, 0)))

    run = jax.vmap(functools.partial(kernel, segment_ids=segments))
    out = run(prepare(q * jnp.asarray(scale, q.dtype)), prepare(k), prepare(v))
    return jnp.moveaxis(out[:, :, :tokens], 2, 1)
