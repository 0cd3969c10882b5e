"""Released temporal rules, against hand-worked values and slow twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_jax.data.sampling import dense_indices, segment_indices


class Fixed:
    """A generator that draws a fixed number and remembers the range it was asked for."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def integers(self, high, size=None):
        self.asked.append(high)
        return self.value if size is None else np.full(size, self.value)


def dense_twin(num_frames, frames, stride, start):
    """The released loop, word for word: a 1-based pointer that moves while there is room."""
    pointer, found = start + 1, []
    for _ in range(frames):
        found.append(pointer - 1)
        if pointer + stride < num_frames:
            pointer += stride
    return found


def test_dense_takes_every_stride_th_frame_from_the_start():
    rng = Fixed(3)
    got = dense_indices(100, frames=16, stride=4, rng=rng)
    assert rng.asked == [37]  # 100 - 64 + 1 places
    np.testing.assert_array_equal(got, 3 + 4 * np.arange(16))


def test_a_short_video_repeats_the_last_frame_it_reaches():
    # 10 frames, stride 4, 1-based pointer 1 -> 5 -> 9; 9 + 4 is too far, and so on 9
    got = dense_indices(10, frames=6, stride=4, rng=Fixed(0))
    np.testing.assert_array_equal(got, [0, 4, 8, 8, 8, 8])
    # the pointer may not come to the last frame: 1 + 4 < 5 is false
    np.testing.assert_array_equal(dense_indices(5, frames=3, stride=4, rng=Fixed(0)), [0, 0, 0])
    np.testing.assert_array_equal(dense_indices(1, frames=2, stride=4, rng=Fixed(0)), [0, 0])


def test_a_video_that_fits_exactly_has_one_place():
    rng = Fixed(0)
    got = dense_indices(64, frames=16, stride=4, rng=rng)
    assert rng.asked == [1]
    np.testing.assert_array_equal(got, 4 * np.arange(16))


def test_stride_one_holds_the_frame_before_the_last():
    # released quirk: 20 frames, start 4: 4..18, then 18 again, never 19
    got = dense_indices(20, frames=16, stride=1, rng=Fixed(4))
    np.testing.assert_array_equal(got, [*range(4, 19), 18])


@given(st.integers(1, 300), st.integers(1, 32), st.integers(1, 8), st.integers(0, 2**32))
def test_dense_equals_the_released_loop(num_frames, frames, stride, seed):
    got = dense_indices(num_frames, frames=frames, stride=stride, rng=np.random.default_rng(seed))
    places = max(1, num_frames - frames * stride + 1)
    start = int(np.random.default_rng(seed).integers(places)) if places > 1 else 0
    assert got[0] == start or places == 1
    np.testing.assert_array_equal(got, dense_twin(num_frames, frames, stride, int(got[0])))
    assert got.min() >= 0 and got.max() < num_frames


def test_dense_starts_are_uniform():
    rng = np.random.default_rng(0)
    starts = [dense_indices(67, frames=16, stride=4, rng=rng)[0] for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4  # 67 - 64 + 1
    assert np.abs(counts - 1000).max() < 150  # five standard deviations of 27


def test_segments_take_one_frame_from_each():
    rng = Fixed(2)
    got = segment_indices(50, frames=16, rng=rng)
    assert rng.asked == [3]  # segments of 50 // 16 frames
    np.testing.assert_array_equal(got, 3 * np.arange(16) + 2)


def test_segments_of_a_short_video_repeat_the_first_frame_in_front():
    got = segment_indices(3, frames=5, rng=Fixed(0))
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 2])


@given(st.integers(1, 200), st.integers(1, 32), st.integers(0, 2**32))
def test_segments_rise_and_stay_inside(num_frames, frames, seed):
    got = segment_indices(num_frames, frames=frames, rng=np.random.default_rng(seed))
    assert len(got) == frames and (np.diff(got) >= 0).all()
    assert got.min() >= 0 and got.max() < num_frames


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        dense_indices(0, frames=16, stride=4, rng=Fixed(0))
