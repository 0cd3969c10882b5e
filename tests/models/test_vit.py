import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import LayerNorm, StackOptions
from vmae_jax.models.vit import Classifier, ViTEncoder
from vmae_jax.variants import StackSpec

GRID, VALUES, SPEC = (2, 2, 3), 6, StackSpec(16, 2, 2)


@functools.cache
def classifier(**kwargs):
    options = StackOptions(kernel_init="normal")
    return functional(
        lambda rngs: Classifier(
            SPEC, options, values=VALUES, num_classes=5, init_scale=1.0, rngs=rngs, **kwargs
        )
    )


def patches(count=3):
    return jax.random.normal(jax.random.key(1), (count, 12, VALUES))


def test_layer_norm_keeps_its_statistics_in_float32():
    norm = LayerNorm(4, eps=1e-6, dtype="bfloat16")
    x = jnp.array([[256.0, 258.0, 260.0, 262.0]], jnp.bfloat16)  # bfloat16 steps by 2 here
    expected = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(norm(x).astype(jnp.float32)[0], expected, rtol=1e-2)


def test_encoding_all_tokens_equals_giving_all_positions():
    net = functional(lambda rngs: ViTEncoder(SPEC, StackOptions(), values=VALUES, rngs=rngs))
    params = jax.jit(net.init)(jax.random.key(0))
    idx = jnp.tile(jnp.arange(12), (3, 1))
    np.testing.assert_allclose(
        net.apply(params, patches(), grid=GRID),
        net.apply(params, patches(), idx, grid=GRID),
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="give idx"):
        net.apply(params, patches()[:, :5], grid=GRID)


def test_mean_pooling_norms_the_mean_and_first_token_norms_before():
    mean, first = classifier(), classifier(pooling="first")
    assert set(mean.shapes) == {"encoder", "fc_norm", "head"}
    assert "norm" not in mean.shapes["encoder"]
    assert set(first.shapes) == {"encoder", "head"}
    assert "norm" in first.shapes["encoder"]
    pooled = mean.apply(
        jax.jit(mean.init)(jax.random.key(0)), patches(), grid=GRID, method="features"
    )
    np.testing.assert_allclose(pooled.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(pooled.std(axis=1), 1, atol=1e-2)


def test_the_head_starts_small():
    net = functional(
        lambda rngs: Classifier(
            StackSpec(64, 1, 2), StackOptions(), values=VALUES, num_classes=50, rngs=rngs
        )
    )
    head = jax.jit(net.init)(jax.random.key(0))["head"]
    np.testing.assert_allclose(np.std(head["kernel"]), 0.02 * 0.001, rtol=0.1)
    np.testing.assert_array_equal(head["bias"], 0)


def test_dropout_before_the_head_is_per_clip_and_unbiased():
    net = classifier(head_dropout=0.5)
    params = jax.jit(net.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(2), 3)
    train = net.apply(params, patches(), grid=GRID, keys=keys)
    np.testing.assert_allclose(
        net.apply(params, patches()[1:2], grid=GRID, keys=keys[1:2]), train[1:2], atol=1e-5
    )
    pooled = jnp.ones((2000, 16))
    params["head"] = {"kernel": jnp.eye(16, 5), "bias": jnp.zeros(5)}
    kept = net.apply(
        params, pooled, keys=jax.random.split(jax.random.key(3), 2000), method="logits"
    )
    np.testing.assert_array_equal(np.unique(kept), [0.0, 2.0])
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.05)
    np.testing.assert_array_equal(net.apply(params, pooled, method="logits"), 1.0)


def test_learned_positions_get_no_gradient_and_fit_one_length():
    net = classifier(positions="frozen", grid=GRID)
    params = jax.jit(net.init)(jax.random.key(0))
    assert params["encoder"]["pos_embed"].shape == (12, 16)
    grads = jax.grad(lambda p: net.apply(p, patches(), grid=GRID).sum())(params)
    np.testing.assert_array_equal(grads["encoder"]["pos_embed"], 0)
    with pytest.raises(ValueError, match=r"grid \(2, 2, 3\), the clip's is \(2, 2, 2\)"):
        net.apply(params, patches()[:, :8], grid=(2, 2, 2))


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="mean, first"):
        classifier(pooling="cls")
    with pytest.raises(ValueError, match="head_dropout"):
        classifier(head_dropout=1.0)
