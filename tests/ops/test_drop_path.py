import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.drop_path import drop_path, drop_path_rates


def test_rates_grow_linearly_from_zero():
    np.testing.assert_allclose(drop_path_rates(0.3, 4), [0.0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(drop_path_rates(0.3, 1), [0.0])
    with pytest.raises(ValueError, match=r"1\.0"):
        drop_path_rates(1.0, 4)


def test_examples_are_dropped_whole_and_survivors_scaled():
    keys = jax.random.split(jax.random.key(0), 400)
    out = np.asarray(drop_path(jnp.ones((400, 2, 3)), keys, 0.25))
    values = out.reshape(400, -1)
    assert (values == values[:, :1]).all()
    np.testing.assert_allclose(np.unique(values), [0.0, 4 / 3], rtol=1e-6)
    assert abs((values[:, 0] == 0).mean() - 0.25) < 0.09  # 4 standard deviations


def test_an_example_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 16)
    branch = jnp.ones((16, 4))
    whole = drop_path(branch, keys, 0.5)
    np.testing.assert_array_equal(drop_path(branch[7:9], keys[7:9], 0.5), whole[7:9])


def test_rate_zero_keeps_everything():
    keys = jax.random.split(jax.random.key(0), 8)
    np.testing.assert_array_equal(drop_path(jnp.ones((8, 2)), keys, 0.0), 1.0)
