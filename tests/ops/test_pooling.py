import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.pooling import conv_pool, depthwise_conv, max_pool, pooled_grid, shifted_sum


def example(shape=(1, 3, 5, 4, 2), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    return x, rng.normal(size=(3, 3, 3, shape[-1])).astype(np.float32)


def windows(x, stride, window, fill):
    """(place of the result, what the window sees there), by loops."""
    half = [side // 2 for side in window]
    padded = np.pad(x, [(0, 0), *((h, h) for h in half), (0, 0)], constant_values=fill)
    for place in itertools.product(*(range(n) for n in pooled_grid(x.shape[1:4], stride))):
        at = [p * s for p, s in zip(place, stride, strict=True)]
        t, h, w = (slice(a, a + side) for a, side in zip(at, window, strict=True))
        yield place, padded[:, t, h, w]


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 8, 8), (2, 1, 3)])
def test_convolution_is_a_loop_over_windows(stride):
    x, kernel = example()
    ours = conv_pool(x, kernel, stride)
    assert ours.shape == (1, *pooled_grid((3, 5, 4), stride), 2)
    for place, seen in windows(x, stride, (3, 3, 3), 0.0):
        np.testing.assert_allclose(
            ours[(0, *place)], (seen[0] * kernel).sum(axis=(0, 1, 2)), rtol=1e-5, atol=1e-5
        )


def test_heads_side_by_side_share_a_filter():
    x, kernel = example((1, 2, 3, 3, 4))
    ours = conv_pool(x, kernel[..., :2], (1, 2, 2))
    for head in (slice(0, 2), slice(2, 4)):
        alone = conv_pool(x[..., head], kernel[..., :2], (1, 2, 2))
        np.testing.assert_array_equal(ours[..., head], alone)


@pytest.mark.parametrize("stride", [(1, 2, 3), (2, 1, 4)])
def test_both_implementations_have_the_same_gradients(stride):
    x, kernel = example((2, 2, 5, 8, 3))

    def loss(pool):
        return lambda x, kernel: jnp.sin(pool(x, kernel, stride)).sum()

    ours = jax.jit(jax.grad(loss(shifted_sum), argnums=(0, 1)))(x, kernel)
    wanted = jax.jit(jax.grad(loss(depthwise_conv), argnums=(0, 1)))(x, kernel)
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_largest_value_is_found_around_every_second_place():
    x, _ = example()
    ours = max_pool(x, (1, 2, 2))
    for place, seen in windows(x, (1, 2, 2), (1, 3, 3), -np.inf):
        np.testing.assert_array_equal(ours[(0, *place)], seen[0].max(axis=(0, 1, 2)))
