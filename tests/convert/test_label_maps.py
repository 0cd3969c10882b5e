import json

import numpy as np
import pytest

from vmae_jax.convert.engine import ConversionError, Report
from vmae_jax.convert.label_maps import map_head, read_label_map
from vmae_jax.convert.sources import Source

HEAD = {
    "head/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "head/bias": np.array([0, 10, 20, 30], np.float32),
    "fc_norm/scale": np.ones(3, np.float32),
}


def source(arrays):
    return Source("x", "file", "f", arrays, Report({}, {}), "0", "MIT")


def written(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_rows_are_gathered_in_the_order_of_the_new_classes(tmp_path):
    label_map = read_label_map(written(tmp_path, [3, 0, 2]))
    taken = map_head(source(HEAD), label_map)
    np.testing.assert_array_equal(taken.arrays["head/bias"], [30, 0, 20])
    np.testing.assert_array_equal(taken.arrays["head/kernel"], [[3, 0, 2], [7, 4, 6], [11, 8, 10]])
    assert taken.arrays["head/kernel"].flags.c_contiguous  # as it will be written
    np.testing.assert_array_equal(taken.arrays["fc_norm/scale"], HEAD["fc_norm/scale"])
    assert "3 of the source's 4 rows" in str(taken.report)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([0, 4], "names row 4 of a head with 4 classes"),
        ([-1, 0], "names row -1 of a head"),
        ([0, 1, 0], "names row 0 for more than one class"),
        ([], "is empty"),
        ([0, True], "no list of whole numbers"),
        ({"0": 1}, "no list of whole numbers"),
        ("[0, 1", "cannot be read"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path, content, words):
    with pytest.raises(ConversionError, match=words):
        map_head(source(HEAD), read_label_map(written(tmp_path, content)))


def test_without_a_head_there_is_nothing_to_map():
    with pytest.raises(ConversionError, match="no classifier"):
        map_head(source({"fc_norm/scale": HEAD["fc_norm/scale"]}), (0,))
    with pytest.raises(ConversionError, match="cannot be read"):
        read_label_map("nowhere.json")
