import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vmae_jax.models import layers
from vmae_jax.models.functional import functional
from vmae_jax.models.stack import build_stack, run_stack
from vmae_jax.ops import attention as ops
from vmae_jax.ops.packed_attention import packed_attention, packed_blocks, packed_vmem_bytes
from vmae_jax.variants import StackSpec

# (tokens, heads, head_dim): every way of walking through a clip, as `test_the_shapes_differ` says.
WHOLE = (40, 3, 24)
GROUPS_AND_TAIL = (700, 4, 64)
ODD_TOKENS = (157, 6, 8)
SHAPES = [WHOLE, GROUPS_AND_TAIL, ODD_TOKENS]
# Of all published recipes; the long ones take a minute each.
PUBLISHED = [
    (160, 6, 64),  # encoders of ViT-S, B, L; H; g
    (160, 12, 64),
    (160, 16, 64),
    (160, 16, 80),
    (208, 16, 88),
    (944, 3, 64),  # decoders of V2
    (944, 6, 64),
    (944, 8, 64),
    (1232, 8, 64),
    (1568, 3, 64),  # decoders of VideoMAE
    (1568, 6, 64),
    (1568, 8, 64),
    (1568, 8, 80),
    (1568, 12, 64),  # classifiers
    (2048, 12, 64),
]
interpreted = functools.partial(packed_attention, interpret=True)


def inputs(shape, dtype, clips=1):
    tokens, heads, head_dim = shape
    inner = heads * head_dim
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = jax.random.normal(keys[0], (clips, tokens, 3 * inner), dtype)
    bias = jax.random.normal(keys[1], (3 * inner,))
    return qkv, bias, jax.random.normal(keys[2], (clips, tokens, inner), dtype)


def reference(qkv, bias, *, heads, scale):
    """In float32, through the entry point that takes q, k and v apart."""
    # Rounded as the kernel's input is, but with float32 gradients.
    rounded = (qkv + bias.astype(qkv.dtype)).astype(jnp.float32)
    exact = qkv.astype(jnp.float32) + bias
    qkv = exact + jax.lax.stop_gradient(rounded - exact)
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in jnp.split(qkv, 3, axis=-1))
    out = ops.attention(q, k, v, scale=scale, impl="xla_f32")
    return out.reshape(*out.shape[:2], -1)


def value_and_grads(fn, qkv, bias, grad):
    out, pullback = jax.vjp(jax.jit(fn), qkv, bias)
    return out, *jax.jit(pullback)(grad.astype(out.dtype))


def check_against_float32(shape, dtype):
    args = inputs(shape, dtype)
    options = {"heads": shape[1], "scale": 0.7 * shape[2] ** -0.5}
    ours = value_and_grads(functools.partial(interpreted, **options), *args)
    wanted = value_and_grads(functools.partial(reference, **options), *args)
    assert [x.dtype for x in ours] == [dtype, dtype, jnp.float32]
    for got, want in zip(ours, wanted, strict=True):
        # bfloat16 rounds the softmax and the results to 8 bits; sums are float32 in both.
        limit = {jnp.float32: 3e-6, jnp.bfloat16: 1e-2}[dtype] * np.abs(want).max()
        assert np.abs(np.asarray(got, np.float32) - np.asarray(want, np.float32)).max() < limit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_gradients_equal_float32_attention(shape, dtype):
    check_against_float32(shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("shape", PUBLISHED)
def test_every_published_stack_equals_float32_attention(shape):
    check_against_float32(shape, jnp.bfloat16)


def test_the_shapes_differ():
    assert packed_blocks(*WHOLE) == (3, 40, 40)  # one pass, heads that share registers
    heads, forward, backward = packed_blocks(*GROUPS_AND_TAIL)
    assert heads == 2 and 0 < 700 % forward < forward and 0 < 700 % backward < backward
    assert packed_blocks(*ODD_TOKENS).forward_rows == 157  # not a multiple of any tile


@pytest.mark.parametrize("shape", PUBLISHED)
def test_passes_begin_at_tiles_and_groups_at_registers(shape):
    tokens, heads, head_dim = shape
    group, forward, backward = packed_blocks(*shape)
    assert heads % group == 0
    assert group == heads or group * head_dim % 128 == 0
    for rows, tile in ((forward, 16), (backward, 128)):
        assert rows == tokens or rows % tile == 0
        assert group * rows * tokens <= 2**21 or rows == tile
    assert packed_vmem_bytes(*shape) < 0.8 * 128 * 2**20  # of a v5e or v6e


@pytest.mark.parametrize("clips", [8, 3])  # 3: too few for 8 devices, computed by all
def test_it_runs_on_each_device_of_a_mesh(clips):
    args = inputs((24, 2, 16), jnp.float32, clips)
    fn = functools.partial(interpreted, heads=2, scale=0.25)
    expected = value_and_grads(functools.partial(reference, heads=2, scale=0.25), *args)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        for got, want in zip(value_and_grads(fn, *args), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_width_that_is_not_three_sides_is_refused():
    with pytest.raises(ValueError, match="for 2 heads"):
        packed_attention(jnp.zeros((1, 4, 28)), heads=2, scale=1.0)


def build(attention, **options):
    options = layers.StackOptions(attention=attention, **options)
    return layers.Attention(24, 3, options, rngs=layers.nnx.Rngs(params=0))


@pytest.mark.parametrize(
    "options",
    [
        {"qkv_bias": True},
        {"key_bias": True},
        {"qkv_bias": False, "qk_scale": 0.3},
        {"cosine_attention": True},
    ],
)
def test_the_layer_gives_it_what_it_gives_the_others(options, monkeypatch):
    for module in (layers, ops):
        monkeypatch.setattr(module, "packed_attention", interpreted)
    packed, separate = build("packed", **options), build("xla_f32", **options)
    for module in (packed, separate) if packed.options.qkv_bias else ():
        module.q_bias[...] = jnp.linspace(-1.0, 1.0, 24)
        module.v_bias[...] = jnp.linspace(2.0, -2.0, 24)
        if packed.options.key_bias:
            module.k_bias[...] = jnp.linspace(-3.0, 1.0, 24)
    x = jax.random.normal(jax.random.key(1), (2, 10, 24))
    np.testing.assert_allclose(jax.jit(packed)(x), separate(x), atol=2e-6)


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("named", 1), ("full", 2)])
def test_only_full_remat_runs_the_forward_kernel_twice(remat, forwards):
    options = layers.StackOptions(attention="packed", remat=remat)
    spec = StackSpec(width=24, depth=1, heads=3)
    network = functional(lambda rngs: build_stack(spec, options, rngs=rngs))

    def loss(params, x):
        return run_stack(network.module(params), x, options).sum()

    gradient = jax.make_jaxpr(jax.grad(loss))(network.shapes, jnp.zeros((2, 10, 24)))
    kernels = re.findall(r"\bname=(packed_attention\w*)", str(gradient))
    assert sorted(kernels) == ["packed_attention"] * forwards + ["packed_attention_backward"]
