import numpy as np
import pytest

from vmae_jax.ops.pos_embed import sincos_table


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
