"""Attention on the packed result of the qkv projection, as one TPU kernel for each direction.

A grid step holds the q, k and v of one clip on the chip, so that the scores never leave it, and
tokens and heads are neither padded nor moved in the memory outside. The backward kernel computes
the softmax again: nothing is kept for it but its input.

Scores of the forward kernel are [queries, keys]: the weighted sum of the values needs them so. In
the backward kernel they are [keys, queries]: two of its three products with them need that, and
sums over the keys run down the sublanes, which costs less than across the lanes.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vmae_jax.ops.per_device import per_device

_LANES = 128  # of a vector register
_SUBLANES = 16  # of a bfloat16 tile
_LOG2_E = math.log2(math.e)
# Scores of one pass, all heads of its group: enough to hide latencies in short clips, and so few
# in long ones that the program, in which a pass is one straight line, stays small.
_SHORT_SCORES, _MOST_SCORES = 2**18, 2**21


class Blocks(NamedTuple):
    """How a kernel walks through the scores of a clip.

    Attributes:
      heads: of one pass; their lanes begin at a register where that is possible.
      forward_rows, backward_rows: queries of one pass.
    """

    heads: int
    forward_rows: int
    backward_rows: int


def packed_blocks(tokens: int, heads: int, head_dim: int) -> Blocks:
    """Few passes of nearly equal size, each large enough to keep the matrix units busy."""
    together = _LANES // math.gcd(head_dim, _LANES)
    if heads % together:
        together = heads  # no smaller group fills whole registers
    most = max(together, _SHORT_SCORES // tokens**2)
    group = max(n for n in range(together, heads + 1, together) if heads % n == 0 and n <= most)
    rows = _MOST_SCORES // (group * tokens)
    return Blocks(
        heads=group,
        forward_rows=_rows(tokens, min(rows, 512), _SUBLANES),
        backward_rows=_rows(tokens, min(rows, 640), _LANES),
    )


def _rows(tokens: int, most: int, step: int) -> int:
    """Queries of one pass: all, or their even share rounded up to whole tiles."""
    passes = -(-tokens // max(most // step * step, step))
    return tokens if passes == 1 else -(-tokens // passes // step) * step


def packed_vmem_bytes(tokens: int, heads: int, head_dim: int, itemsize: int = 2) -> int:
    """What the kernels need of the chip's own memory, estimated from above."""
    blocks = packed_blocks(tokens, heads, head_dim)
    padded = -(-tokens // _LANES) * _LANES
    side = padded * heads * head_dim * itemsize
    sums = 2 * padded * max(blocks.heads * head_dim, _LANES) * 4
    # Seen in compiled kernels: 10 for 8 heads, fewer than 6 for 2.
    scores = (4 + blocks.heads) * min(blocks.backward_rows, padded) * padded * 4
    return 2 * 7 * side + sums + scores  # qkv, its gradient and the output's; two buffers each


def packed_attention(
    qkv: jax.Array,
    bias: jax.Array | None = None,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T) v of each head, from q, k and v side by side.

    Softmax in float32; matrix products in the dtype of `qkv` with float32 sums. Under a mesh each
    device runs the kernel on its own clips. What the backward pass needs, `qkv` with its bias, is
    marked "qkv" for remat policies.

    Args:
      qkv: [B, N, 3*heads*head_dim]; q, then k, then v; the heads of each side by side.
      bias: [3*heads*head_dim], added to each token; None: none. It belongs here rather than to the
        projection because the kernel sums its gradient while that is still on the chip.
      heads: static.
      scale: static positive factor on the scores, usually head_dim ** -0.5.
      interpret: run the kernel's program in plain JAX on any machine (slow; for tests).

    Returns:
      [B, N, heads*head_dim], dtype of qkv.

    Raises:
      ValueError: a width that is not three times a multiple of `heads`.
    """
    if qkv.ndim != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(
            f"expected qkv [B, N, 3*{heads}*head_dim] for {heads} heads, got {qkv.shape}"
        )
    if bias is None:
        bias = jnp.zeros(qkv.shape[-1])
    else:  # added outside of what has its own derivative, so that a policy can keep the sum
        qkv = qkv + jax.lax.stop_gradient(bias).astype(qkv.dtype)
    return _attention(
        checkpoint_name(qkv, "qkv"), bias.astype(jnp.float32), heads, scale, interpret
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _attention(qkv, bias, heads, scale, interpret):
    """`bias` is part of `qkv` already; it is an argument for its gradient's sake."""
    kernel = functools.partial(_run_forward, heads=heads, scale=scale, interpret=interpret)
    return per_device(kernel, qkv)


def _forward(qkv, bias, heads, scale, interpret):
    return _attention(qkv, bias, heads, scale, interpret), qkv


def _backward(heads, scale, interpret, qkv, grad):
    kernel = functools.partial(_run_backward, heads=heads, scale=scale, interpret=interpret)
    grad_qkv, sums = per_device(kernel, qkv, grad.astype(qkv.dtype))
    return grad_qkv, sums.sum(axis=(0, 1))


_attention.defvjp(_forward, _backward)


def _run_forward(qkv, *, heads, scale, interpret):
    batch, tokens, width = qkv.shape
    blocks = packed_blocks(tokens, heads, width // 3 // heads)
    return pl.pallas_call(
        functools.partial(_forward_kernel, heads=heads, scale=scale, blocks=blocks),
        grid=(batch,),
        in_specs=[_clip(tokens, width)],
        out_specs=_clip(tokens, width // 3),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width // 3), qkv.dtype),
        compiler_params=_compiler_params(qkv, heads),
        interpret=interpret,
        name="packed_attention",
    )(qkv)


def _run_backward(qkv, grad, *, heads, scale, interpret):
    batch, tokens, width = qkv.shape
    blocks = packed_blocks(tokens, heads, width // 3 // heads)
    sums = pltpu.VMEM((tokens, blocks.heads * (width // 3 // heads)), jnp.float32)
    return pl.pallas_call(
        functools.partial(_backward_kernel, heads=heads, scale=scale, blocks=blocks),
        grid=(batch,),
        in_specs=[_clip(tokens, width), _clip(tokens, width // 3)],
        out_specs=[_clip(tokens, width), _clip(1, width)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
            jax.ShapeDtypeStruct((batch, 1, width), jnp.float32),
        ],
        scratch_shapes=[sums, sums],
        compiler_params=_compiler_params(qkv, heads),
        interpret=interpret,
        name="packed_attention_backward",
    )(qkv, grad)


def _clip(tokens: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, tokens, width), lambda clip: (clip, 0, 0))


def _compiler_params(qkv: jax.Array, heads: int) -> pltpu.CompilerParams:
    tokens, width = qkv.shape[1:]
    needed = packed_vmem_bytes(tokens, heads, width // 3 // heads, qkv.dtype.itemsize)
    return pltpu.CompilerParams(
        dimension_semantics=("parallel",),
        # Not below the compiler's own default; a quarter to spare, as `choose_attention` leaves it.
        vmem_limit_bytes=max(needed * 5 // 4, 16 * 2**20),
    )


def _forward_kernel(qkv_ref, out_ref, *, heads, scale, blocks):
    """qkv_ref [N, 3*heads*head_dim] -> out_ref [N, heads*head_dim]."""
    tokens, inner = out_ref.shape

    def one_pass(lanes, rows):
        q, k, v = qkv_ref[rows, lanes(0)], qkv_ref[:, lanes(inner)], qkv_ref[:, lanes(2 * inner)]
        contexts = []
        for head in _heads(blocks, inner // heads):
            scores = _dot(q[:, head], k[:, head], (1, 1))
            probs = jnp.exp2(scale * _LOG2_E * (scores - scores.max(axis=1, keepdims=True)))
            context = _dot(probs.astype(v.dtype), v[:, head], (1, 0))
            contexts.append(context / probs.sum(axis=1, keepdims=True))
        out_ref[rows, lanes(0)] = jnp.concatenate(contexts, axis=1).astype(out_ref.dtype)

    def one_group(lanes):
        _for_rows(tokens, blocks.forward_rows, functools.partial(one_pass, lanes))

    _for_groups(heads, inner // heads, blocks, one_group)


def _backward_kernel(
    qkv_ref, grad_ref, grad_qkv_ref, grad_bias_ref, grad_k_ref, grad_v_ref, *, heads, scale, blocks
):
    """grad_ref [N, heads*head_dim] -> grad_qkv_ref, and grad_bias_ref, its sum over the tokens.

    grad_k_ref and grad_v_ref sum over the passes of a group.
    """
    tokens, inner = grad_ref.shape
    dtype = qkv_ref.dtype

    def one_pass(lanes, rows):
        q, k, v = qkv_ref[rows, lanes(0)], qkv_ref[:, lanes(inner)], qkv_ref[:, lanes(2 * inner)]
        grad = grad_ref[rows, lanes(0)]
        grads_q, grads_k, grads_v = [], [], []
        for head in _heads(blocks, inner // heads):
            scores = _dot(k[:, head], q[:, head], (1, 1))
            probs = jnp.exp2(scale * _LOG2_E * (scores - scores.max(axis=0, keepdims=True)))
            probs = probs * (1.0 / probs.sum(axis=0, keepdims=True))
            product = probs * _dot(v[:, head], grad[:, head], (1, 1))
            of_scores = product - probs * product.sum(axis=0, keepdims=True)
            of_scores = of_scores.astype(dtype)
            grads_q.append(_dot(of_scores, k[:, head], (0, 0)))
            grads_k.append(_dot(of_scores, q[:, head], (1, 0)))
            grads_v.append(_dot(probs.astype(dtype), grad[:, head], (1, 0)))
        grad_q = scale * jnp.concatenate(grads_q, axis=1)
        grad_qkv_ref[rows, lanes(0)] = grad_q.astype(dtype)
        grad_bias_ref[:, lanes(0)] += grad_q.sum(axis=0, keepdims=True)
        grad_k_ref[...] += jnp.concatenate(grads_k, axis=1)
        grad_v_ref[...] += jnp.concatenate(grads_v, axis=1)

    def one_group(lanes):
        grad_k_ref[...] = jnp.zeros_like(grad_k_ref)
        grad_v_ref[...] = jnp.zeros_like(grad_v_ref)
        grad_bias_ref[:, lanes(0)] = jnp.zeros_like(grad_bias_ref[:, lanes(0)])
        _for_rows(tokens, blocks.backward_rows, functools.partial(one_pass, lanes))
        for side, total in ((inner, scale * grad_k_ref[...]), (2 * inner, grad_v_ref[...])):
            grad_qkv_ref[:, lanes(side)] = total.astype(dtype)
            grad_bias_ref[:, lanes(side)] = total.sum(axis=0, keepdims=True)

    _for_groups(heads, inner // heads, blocks, one_group)


def _dot(x, y, contracted):
    dims = ((contracted[:1], contracted[1:]), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _heads(blocks, head_dim):
    """Lanes of each head among those of its group."""
    return [slice(i * head_dim, (i + 1) * head_dim) for i in range(blocks.heads)]


def _for_groups(heads, head_dim, blocks, body):
    """Calls `body(lanes)` for each group; `lanes(side)` are its lanes of that side of qkv."""
    width = blocks.heads * head_dim
    if blocks.heads == heads:
        body(lambda side: pl.ds(side, width))
        return

    def step(group, carry):
        # Several groups are whole registers wide, and so is then each side.
        body(lambda side: pl.ds(pl.multiple_of(side + group * width, _LANES), width))
        return carry

    jax.lax.fori_loop(0, heads // blocks.heads, step, None)


def _for_rows(tokens, rows, body):
    """Calls `body(rows)` for all tokens: a loop over whole passes, then a shorter last one."""
    passes = tokens // rows

    def step(i, carry):
        body(pl.ds(pl.multiple_of(i * rows, _SUBLANES), rows))
        return carry

    if passes == 1:
        body(pl.ds(0, rows))
    else:
        jax.lax.fori_loop(0, passes, step, None)
    if tokens > passes * rows:
        body(pl.ds(passes * rows, tokens - passes * rows))
