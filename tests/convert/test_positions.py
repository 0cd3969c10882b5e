import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file

from vmae_jax.convert.positions import resize_positions
from vmae_jax.ops.pos_embed import sincos_table


def cubic(distance, a=-0.75):
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a


def test_space_is_bicubic_within_a_slot():
    table = np.random.default_rng(0).normal(size=(2, 3, 4, 1))
    resized = resize_positions(table.reshape(24, 1), (2, 3, 4), (2, 5, 4)).reshape(2, 5, 4)
    row = 1.5 * 3 / 5 - 0.5  # of the second new row, on the old ones: 0.4
    taps = [(max(k, 0), cubic(abs(row - k))) for k in range(-1, 3)]
    for slot, column in itertools.product(range(2), range(4)):
        expected = sum(weight * table[slot, k, column, 0] for k, weight in taps)
        np.testing.assert_allclose(resized[slot, 1, column], expected, rtol=1e-6)


def test_time_is_linear_and_stays_within_its_ends():
    table = np.array([[0.0], [10.0]])
    resized = resize_positions(table, (2, 1, 1), (4, 1, 1))
    np.testing.assert_allclose(resized[:, 0], [0, 2.5, 7.5, 10])


def test_the_same_grid_changes_nothing():
    table = sincos_table(2 * 3 * 5, 4)
    np.testing.assert_array_equal(resize_positions(table, (2, 3, 5), (2, 3, 5)), table)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="not one of a grid"):
        resize_positions(np.zeros((7, 2)), (2, 2, 2), (2, 4, 4))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("finetune_n128_d24_frames8", (8, 4, 4)),
        ("finetune_n64_d24_frames4", (4, 4, 4)),
        ("finetune_n144_d12_frames16", (16, 3, 3)),
    ],
)
def test_recorded_tables_are_reproduced(shared, name, target):
    recorded = load_file(shared / "golden/umt_position_tables/outputs.safetensors")[name]
    resized = resize_positions(sincos_table(1568, recorded.shape[-1]), (8, 14, 14), target)
    np.testing.assert_allclose(resized, recorded.reshape(resized.shape), rtol=1e-5, atol=5e-6)
