import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.variants import StackSpec

SPEC, VALUES, GRID, OUTPUT = StackSpec(16, 3, 2), 6, (2, 3), 5


@functools.cache
def tower(depth=SPEC.depth):
    spec = StackSpec(SPEC.width, depth, SPEC.heads)
    options = StackOptions(attention="xla_f32")
    return functional(
        lambda rngs: ImageTower(spec, options, values=VALUES, grid=GRID, output=OUTPUT, rngs=rngs)
    )


@functools.cache
def params():
    """Every parameter away from its initial value, so that all of them matter."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), tower().shapes
    )


def patches():
    return jax.random.normal(jax.random.key(0), (4, 6, VALUES))


def look(params, *, depth=SPEC.depth, **layers):
    run = jax.jit(tower(depth).apply, static_argnames=("taps", "attention_layer"))
    return run(params, patches(), **layers)


def test_a_tapped_layer_says_what_a_tower_that_ends_there_says():
    short = params() | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params()["blocks"])}
    features, attention = look(params(), taps=(1, 3))
    assert features.shape == (2, 4, 6, OUTPUT) and features.dtype == jnp.float32
    np.testing.assert_allclose(features[:1], look(short, depth=1, taps=(1,))[0], atol=1e-5)
    # Whatever is tapped, attention is the last layer's,
    np.testing.assert_allclose(look(params(), taps=(2, 3))[1], attention, atol=1e-6)
    # unless that of another is asked for.
    first = look(short, depth=1, taps=(1,))[1]
    assert np.abs(first - attention).max() > 1e-2
    earlier = look(params(), taps=(3,), attention_layer=1)[1]
    np.testing.assert_allclose(earlier, first, atol=1e-6)


def numpy_block(block, x):
    """The released block on tokens [N, w], written out; and the weights of its first token."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    attn, mlp = block["attn"], block["mlp"]
    bias = np.concatenate([attn[f"{name}_bias"] for name in "qkv"])
    q, k, v = np.split(norm(x, block["norm1"]) @ attn["qkv"]["kernel"] + bias, 3, axis=-1)
    q, k, v = (rearrange(y, "n (heads d) -> heads n d", heads=SPEC.heads) for y in (q, k, v))
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
    weights = scores / scores.sum(-1, keepdims=True)
    context = rearrange(weights @ v, "heads n d -> n (heads d)")
    x = x + context @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    hidden = norm(x, block["norm2"]) @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return x + hidden @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"], weights.mean(0)[0], norm


def test_a_tower_of_one_block_is_the_released_one():
    one = params() | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params()["blocks"])}
    features, attention = look(one, depth=1, taps=(1,))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), one)
    block = jax.tree.map(lambda leaf: leaf[0], p["blocks"])
    embedded = np.asarray(patches()[1], np.float64) @ p["patch_embed"]["kernel"]
    tokens = np.concatenate([p["cls_token"][None], embedded]) + p["pos_embed"]
    _, _, norm = numpy_block(block, tokens)
    out, weights, _ = numpy_block(block, norm(tokens, p["norm_pre"]))
    expected = norm(out, p["norm"])[1:] @ p["proj"]["kernel"]
    np.testing.assert_allclose(features[0, 1], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(attention[1], weights[1:], rtol=1e-4, atol=1e-6)
    assert (attention.sum(axis=1) < 1).all()  # the rest is what the class token takes of itself


def test_patches_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"\[F, 6, 6\]"):
        tower().apply(params(), patches()[:, :5], taps=(3,))
