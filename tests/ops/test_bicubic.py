import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.bicubic import bicubic_matrix, linear_matrix, resize_bicubic


def test_a_sample_between_two_takes_four_and_repeats_the_border():
    # From 2 samples to 1: its centre lies half way, at distances .5 and 1.5 of two on each side,
    # of which the outer repeat the border.
    np.testing.assert_allclose(bicubic_matrix(2, 1), [[0.5, 0.5]])
    a, d = -0.75, np.array([1.25, 0.25, 0.75, 1.75])  # the second of 4 samples from 2: at 0.25
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    taps = np.where(d <= 1, near, far)
    np.testing.assert_allclose(bicubic_matrix(2, 4)[1], [taps[0] + taps[1], taps[2] + taps[3]])


@pytest.mark.parametrize("matrix", [bicubic_matrix, linear_matrix])
def test_a_flat_line_stays_flat_and_the_same_length_changes_nothing(matrix):
    np.testing.assert_allclose(matrix(9, 5).sum(axis=1), 1)
    np.testing.assert_array_equal(matrix(5, 5), np.eye(5))


def test_rows_and_columns_are_not_mixed_up():
    rows = jnp.arange(4.0)[:, None, None] * jnp.ones((1, 6, 2))
    resized = resize_bicubic(rows, 3, 5)
    np.testing.assert_allclose(
        resized,
        np.tile((bicubic_matrix(4, 3) @ np.arange(4.0))[:, None, None], (1, 5, 2)),
        atol=1e-6,
    )


def test_released_numbers_are_reproduced():
    video = np.random.RandomState(0).standard_normal((1, 3, 8, 224, 224)).astype(np.float32)
    resized = resize_bicubic(jnp.moveaxis(video, 1, -1), 196, 196)
    assert resized.shape == (1, 8, 196, 196, 3)
    np.testing.assert_allclose([resized.mean(), resized.std()], [0.001039, 0.856143], atol=1e-6)
    first = [1.50217, 0.3367, 1.42681, 2.28401, -0.24839]
    np.testing.assert_allclose(resized[0, 0, 0, :5, 0], first, atol=1e-5)
