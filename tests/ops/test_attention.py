import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vmae_jax import chips
from vmae_jax.ops import attention as ops

SHAPES = [(2, 160, 2, 88), (1, 300, 3, 64)]  # an encoder of ViT-g, an odd decoder length


def inputs(shape, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(key, shape, dtype) for key in keys)


def value_and_grads(fn, args):
    def loss(*args):
        out = fn(*args)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def test_attention_equals_a_numpy_twin():
    q, k, v = (np.asarray(x, np.float64) for x in inputs((2, 5, 2, 4)))
    expected = np.zeros_like(q)
    for b in range(2):
        for h in range(2):
            scores = np.exp(0.3 * q[b, :, h] @ k[b, :, h].T)
            expected[b, :, h] = scores / scores.sum(axis=1, keepdims=True) @ v[b, :, h]
    for impl in ("xla", "xla_f32"):
        out = ops.attention(*inputs((2, 5, 2, 4)), scale=0.3, impl=impl)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def available(shape):
    scale = shape[-1] ** -0.5
    choices = {
        "xla": lambda *qkv: ops.attention(*qkv, scale=scale, impl="xla"),
        "splash": lambda *qkv: ops.splash(
            *qkv, scale=scale, interpret=jax.default_backend() != "tpu"
        ),
    }
    if jax.default_backend() == "gpu":
        choices["cudnn"] = lambda *qkv: ops.attention(*qkv, scale=scale, impl="cudnn")
    return choices


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_choices_of_this_machine_agree(shape, dtype):
    args = inputs(shape, jnp.dtype(dtype))
    reference = value_and_grads(
        lambda *qkv: ops.attention(*qkv, scale=shape[-1] ** -0.5, impl="xla_f32"), args
    )
    for name, fn in available(shape).items():
        if name == "cudnn" and dtype == "float32":
            continue
        for ours, wanted in zip(value_and_grads(fn, args), reference, strict=True):
            # bfloat16 keeps 8 bits, and dk is a difference of larger terms: 0.6 % off with jax
            # 0.10's XLA on a CPU, 2.4 % with jax 0.12's. float32 differs by order of summation.
            limit = {"float32": 2e-5, "bfloat16": 3e-2}[dtype] * np.abs(wanted).max()
            assert np.abs(ours - wanted).max() < limit, name


@pytest.mark.parametrize("clips", [8, 3])  # 3: too few for 8 devices, computed by all
def test_splash_runs_on_each_device_of_a_mesh(clips):
    args = inputs((clips, 40, 2, 16))
    expected = ops.attention(*args, scale=0.25, impl="xla_f32")
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda *qkv: ops.splash(*qkv, scale=0.25, interpret=True))(*args)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 160, 208, 944, 1232, 1568, 2048, 11552])
def test_splash_blocks_tile_the_padded_length(tokens):
    padded, block = ops.splash_block(tokens)
    assert padded >= tokens
    assert padded % block == 0 and block % 128 == 0 and block <= 1024
    assert padded - tokens < max(256, 0.15 * tokens)


def test_softmax_keeps_bfloat16_scores_but_computes_in_float32():
    scores = jax.random.normal(jax.random.key(0), (4, 300), jnp.bfloat16) * 4
    probs = ops._softmax(scores)
    assert probs.dtype == jnp.bfloat16
    exact = jax.nn.softmax(scores.astype(jnp.float32))
    np.testing.assert_allclose(probs.astype(jnp.float32), exact, rtol=2**-8)


def test_cosine_attention_clamps_its_scale():
    q, k, _ = inputs((1, 4, 2, 8))
    q2, k2 = ops.cosine_queries_keys(q, k, jnp.array([math.log(10.0), 9.0]))
    np.testing.assert_allclose(jnp.linalg.norm(k2, axis=-1), 1.0, rtol=1e-6)
    lengths = jnp.linalg.norm(q2, axis=-1)[0]
    np.testing.assert_allclose(lengths[:, 0], 10.0, rtol=1e-5)
    np.testing.assert_allclose(lengths[:, 1], math.exp(4.6052), rtol=1e-5)
    zero = ops.cosine_queries_keys(q * 0, k, jnp.zeros(2))[0]
    assert jnp.isfinite(zero).all()


ENCODER = {"tokens": 160, "heads": 12, "head_dim": 64}
LONG = {"tokens": 11552, "heads": 12, "head_dim": 64}


@pytest.mark.parametrize(
    ("chip", "shape", "dtype", "chosen"),
    [
        ("cpu", ENCODER, "float32", "xla"),
        ("cpu", LONG, "bfloat16", "xla"),
        ("h100", ENCODER, "bfloat16", "cudnn"),
        ("a100", LONG, "bfloat16", "cudnn"),
        ("h100", LONG, "float32", "xla"),
        ("h100", ENCODER | {"head_dim": 12}, "bfloat16", "xla"),
        ("v5e", ENCODER, "bfloat16", "packed"),
        ("v5e", LONG, "bfloat16", "splash"),  # more than fits on the chip
        ("v4", ENCODER, "bfloat16", "packed"),
        ("v4", ENCODER | {"tokens": 944}, "bfloat16", "splash"),
        ("v6e", ENCODER, "float32", "xla"),
        ("v6e", ENCODER | {"tokens": 944}, "float32", "splash"),
    ],
)
def test_auto_chooses_by_stack_and_chip(chip, shape, dtype, chosen):
    assert ops.choose_attention("auto", chip=chips.named(chip), dtype=dtype, **shape) == chosen


@pytest.mark.parametrize(
    ("impl", "chip", "shape", "dtype", "words"),
    [
        ("cudnn", "cpu", ENCODER, "bfloat16", "needs a GPU"),
        ("cudnn", "h100", ENCODER, "float32", "float32"),
        ("splash", "h100", ENCODER, "bfloat16", "needs a TPU"),
        ("packed", "cpu", ENCODER, "bfloat16", "needs a TPU"),
        ("packed", "v5e", LONG, "bfloat16", "11552 tokens"),
        ("flash", "h100", ENCODER, "bfloat16", "xla, xla_f32, cudnn, packed, splash"),
    ],
)
def test_choices_that_cannot_run_are_refused(impl, chip, shape, dtype, words):
    with pytest.raises(ValueError, match=words):
        ops.choose_attention(impl, chip=chips.named(chip), dtype=dtype, **shape)


def test_attention_refuses_auto_and_other_shapes():
    q, k, v = inputs((1, 4, 2, 8))
    with pytest.raises(ValueError, match="choose_attention"):
        ops.attention(q, k, v, scale=1.0, impl="auto")
    with pytest.raises(ValueError, match="one shape"):
        ops.attention(q, k[:, :2], v, scale=1.0)
