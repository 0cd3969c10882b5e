import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file

from vmae_jax.ops.pos_embed import resize_positions, sincos_positions, sincos_table


@pytest.mark.parametrize(
    ("tokens", "width", "total", "row_1", "last"),
    [  # reference/videomae.md 1.3 and reference/videomae_v2.md 1.1
        (1568, 192, 60779.0220, (0.841471, 0.540302, 0.788593, 0.614915), (0.171625, 0.985162)),
        (1568, 768, 245744.9896, (0.841471, 0.540302, 0.828431, 0.560091), (0.159816, 0.987147)),
        (2048, 1408, 543941.7399, (0.841471, 0.540302, 0.834377, 0.551194), (0.205912, 0.978570)),
        (2048, 512, 197141.0758, (0.841471, 0.540302, 0.821856, 0.569695), (0.210610, 0.977570)),
    ],
)
def test_table_has_the_published_values(tokens, width, total, row_1, last):
    table = sincos_table(tokens, width)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table.sum(dtype=np.float64), total, rtol=1e-6)
    np.testing.assert_allclose(table[1, :4], row_1, atol=1e-6)
    np.testing.assert_allclose(table[-1, -2:], last, atol=1e-6)


def test_table_is_shared_and_cannot_be_changed():
    table = sincos_table(8, 6)
    assert sincos_table(8, 6) is table
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1


def test_an_odd_width_ends_with_a_sine():
    np.testing.assert_allclose(sincos_table(4, 3)[2, 2], np.sin(2 / 10000 ** (2 / 3)), rtol=1e-6)


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
    resized = sincos_positions(target, recorded.shape[-1], origin=(8, 14, 14))
    np.testing.assert_allclose(resized, recorded.reshape(resized.shape), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    ("grid", "token", "row"),
    [  # reference/umt.md D2
        ((8, 14, 14), 201, (-0.06189, 0.99808, 0.99360, 0.11298)),
        ((16, 14, 14), 201, (-0.73467, 0.46227, -0.49090, 0.15447)),
        ((16, 14, 14), 7 * 196 + 100, (-0.22753, -0.83765, -0.23335, 0.45869)),
        ((8, 24, 24), 0, (-0.19074, 1.12537, -0.17660, 1.09197)),
        ((8, 24, 24), 2 * 576 + 3 * 24 + 7, (0.79865, -0.60783, -1.01652, 0.18164)),
    ],
)
def test_the_sinusoid_of_8_frames_serves_more_frames_and_pixels(grid, token, row):
    table = sincos_positions(grid, 768, origin=(8, 14, 14))
    np.testing.assert_allclose(table[token, :4], row, atol=6e-6)  # half a unit of the last digit


def test_on_its_own_grid_the_sinusoid_is_what_it_was():
    assert sincos_positions((2, 3, 5), 4, origin=(2, 3, 5)) is sincos_table(30, 4)
    with pytest.raises(ValueError, match="read-only"):
        sincos_positions((2, 3, 4), 4, origin=(2, 3, 5))[0] = 1
