import numpy as np
import pytest

from vmae_jax.ops.relative import linear_weights, places, relative_scores, relative_weights


# reference/maskfeat.md 1.5: row of the table for query i and key j.
@pytest.mark.parametrize(
    ("queries", "keys", "row"),
    [(28, 14, lambda i, j: i - 2 * j + 26), (7, 14, lambda i, j: 2 * i - j + 13)],
)
def test_rows_are_those_of_the_reference(queries, keys, row):
    weights = relative_weights(queries, keys, 2 * max(queries, keys) - 1)
    i, j = np.indices((queries, keys))
    np.testing.assert_array_equal(weights.argmax(-1), row(i, j))
    np.testing.assert_array_equal(weights.sum(-1), 1.0)


def test_places_between_rows_are_truncated():
    # 78 queries for 10 keys, 7.8 of one to one of the other: the last query and key lie
    # 77 - 9 * 7.8 + 9 * 7.8 = 77 rows from the first, query 0 and key 8 7.8 rows, truncated to 7.
    weights = relative_weights(78, 10, 155)
    assert weights[77, 9].argmax() == 77 and weights[0, 8].argmax() == 7


def test_table_of_another_length_is_resampled():
    # 13 rows of 27: row 6 at 6.5 * 27 / 13 - 0.5 = 13, row 0 at 7 / 13 between rows 0 and 1.
    weights = linear_weights(27, 13)
    assert weights[6, 13] == 1.0
    np.testing.assert_allclose(weights[0, :2], [6 / 13, 7 / 13], rtol=1e-6)
    # Longer: what lies beyond the borders is the border's.
    np.testing.assert_allclose(linear_weights(2, 4)[:, 0], [1.0, 0.75, 0.25, 0.0])


def test_scores_of_axes_spread_over_the_tokens_of_the_grid():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 2, 3, 4, 2, 5)).astype(np.float32)
    kv_grid, scores = (2, 2, 1), []
    tables = [rng.normal(size=(rows, 5)).astype(np.float32) for rows in (3, 5, 7)]
    for axis, table in enumerate(tables, 1):
        scores.append(relative_scores(q, table, axis=axis, keys=kv_grid[axis - 1]))
    spread = np.concatenate(scores, axis=-1) @ places(kv_grid).T
    for key, (t, h, w) in enumerate(np.ndindex(kv_grid)):
        # Query (1, 2, 3) of the second head; rows by the formula of the reference.
        vector = q[0, 1, 2, 3, 1]
        rows = (1 - t + 1, int(2 - 1.5 * h + 1.5), int(3 - 4 * w + 0))
        expected = sum(vector @ table[row] for table, row in zip(tables, rows, strict=True))
        np.testing.assert_allclose(spread[0, 1, 2, 3, 1, key], expected, rtol=1e-5)
