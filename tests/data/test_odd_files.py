"""Odd and broken real files: each decodes exactly what it should, or is refused in words.

The files are not part of the repository. VMAE_SHARED names the folder that holds `data/odd` and
`data/actions`; without it, ../shared beside the repository is tried.
"""

import csv
import os
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_jax.data.video import VideoError, count_frames, probe, read_frames

_HERE = Path(__file__).resolve()
SHARED = Path(os.environ.get("VMAE_SHARED", _HERE.parents[3] / "shared"))
ODD, ACTIONS = SHARED / "data" / "odd", SHARED / "data" / "actions"


def rows():
    if not (ODD / "expect.csv").is_file():
        return []
    with (ODD / "expect.csv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


needs_odd = pytest.mark.skipif(not rows(), reason=f"no odd files in {ODD} (set VMAE_SHARED)")
needs_actions = pytest.mark.skipif(
    not ACTIONS.is_dir(), reason=f"no clips in {ACTIONS} (set VMAE_SHARED)"
)


def check_random_access(path, whole):
    """Any choice of frames equals the same frames of the whole, decoded in one go."""
    rng = np.random.default_rng(0)
    last = len(whole) - 1
    choices = [[0], [last], [last, 0, last], *rng.integers(len(whole), size=(4, 5)).tolist()]
    for chosen in choices:
        np.testing.assert_array_equal(read_frames(path, chosen), whole[chosen])


def plainly_decoded(path):
    """All frames by PyAV's own loop, without seeking or skipping."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not int(s.disposition) & 0x400)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


@needs_odd
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["file"])
def test_odd_file_behaves_as_its_table_says(row):
    path = ODD / row["file"]
    try:
        info = probe(path)
        whole = read_frames(path, lambda n, _: range(n))
    except VideoError as error:
        assert row["should"] != "decode", f"refused: {error}"
        assert row["file"] in str(error) and len(error.reason) > 10
        return
    assert row["should"] != "reject"
    assert int(row["frames_min"]) <= len(whole) <= int(row["frames_max"])
    assert f"{info.width}x{info.height}" == row["size"]
    assert whole.shape[1:] == (info.height, info.width, 3)
    assert info.num_frames == len(whole) == count_frames(path)
    if row["should"] == "decode" and not info.rotation:
        plain = plainly_decoded(path)
        assert len(plain) == len(whole)
        for ours, theirs in zip(whole, plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    check_random_access(path, whole)


@needs_odd
def test_rotation_turns_the_picture_clockwise():
    path = ODD / "real_rotate90_h264.mov"
    stored = plainly_decoded(path)[0]
    shown = read_frames(path, [0])[0]
    assert probe(path).rotation == 270  # counter-clockwise
    np.testing.assert_array_equal(shown[0, -1], stored[0, 0])  # top left goes to top right


@needs_odd
def test_a_truncated_file_says_so():
    info = probe(ODD / "crafted_truncated_half_faststart.mp4")
    assert info.num_frames == 100 and "180" in info.warnings[0]


@needs_actions
def test_random_access_equals_sequential_decoding_on_ordinary_clips():
    paths = sorted(ACTIONS.glob("videos/*/*.mp4"))
    for path in paths[:: len(paths) // 12]:
        whole = read_frames(path, lambda n, _: range(n))
        np.testing.assert_array_equal(whole, np.stack(plainly_decoded(path)))
        check_random_access(path, whole)
