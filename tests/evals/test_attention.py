import numpy as np
import pytest

from vmae_jax.evals.attention import rollout


def test_rollout_of_two_layers_by_hand():
    # Two heads whose mean looks at token 1 only; then one that looks at the other token.
    first = np.array([[[[0, 1], [0.5, 0.5]], [[0, 1], [-0.5, 1.5]]]])
    second = np.array([[[[0, 1], [1, 0]]]])
    # With the residual: [[.5, .5], [0, 1]], then [[.5, .5], [.5, .5]].
    expected = [[[0.25, 0.75], [0.25, 0.75]]]
    np.testing.assert_allclose(rollout(iter([first, second])), expected)


def test_the_order_of_layers_counts():
    layers = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2, 4, 5)).astype(np.float32)
    forward = rollout(layers)
    np.testing.assert_allclose(forward.sum(axis=-1), 1, atol=1e-6)
    assert np.abs(forward - rollout(layers[::-1])).max() > 1e-3


def test_nothing_to_roll_out():
    with pytest.raises(ValueError, match="no layers"):
        rollout([])
