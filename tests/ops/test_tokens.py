import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.tokens import gather, scatter


def test_gather_picks_for_each_clip_by_itself():
    tokens = jnp.arange(2 * 4 * 3).reshape(2, 4, 3)
    idx = jnp.array([[0, 2], [3, 1]])
    expected = [[[0, 1, 2], [6, 7, 8]], [[21, 22, 23], [15, 16, 17]]]
    np.testing.assert_array_equal(gather(tokens, idx), expected)


def test_gather_works_on_plain_vectors_and_bytes():
    np.testing.assert_array_equal(gather(jnp.array([[True, False]]), jnp.array([[1]])), [[False]])
    assert gather(jnp.zeros((1, 4, 2), jnp.uint8), jnp.array([[1]])).dtype == jnp.uint8


def test_scatter_puts_tokens_back_and_leaves_zeros():
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 3))
    idx = jnp.array([[1, 4, 5], [0, 2, 3]])
    full = scatter(gather(tokens, idx), idx, 6)
    hidden = np.ones((2, 6), bool)
    np.put_along_axis(hidden, np.asarray(idx), False, axis=1)
    np.testing.assert_array_equal(full, np.where(hidden[..., None], 0, tokens))


def test_batches_that_differ_are_refused():
    with pytest.raises(ValueError, match="idx"):
        gather(jnp.zeros((2, 4, 3)), jnp.zeros((3, 2), jnp.int32))
    with pytest.raises(ValueError, match="2 tokens a clip for 3"):
        scatter(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3), jnp.int32), 4)
