"""Released temporal rules, against hand-worked values and slow twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_jax.data.sampling import (
    dense_indices,
    dense_views,
    seconds_indices,
    seconds_views,
    segment_indices,
    segment_views,
    sparse_indices,
    sparse_views,
    view_starts,
    window_indices,
)


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


# offsets of int(linspace(0, 64, 16)), the end clipped to 63: 64/15 apart, not 4
WINDOW = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]


def test_a_window_is_spread_evenly_and_its_end_is_drawn_below_the_last_frame():
    rng = Fixed(5)
    got = window_indices(100, frames=16, stride=4, rng=rng)
    assert rng.asked == [36]  # ends 64..99, exclusive of 100
    np.testing.assert_array_equal(got, np.array(WINDOW) + 5)


def test_the_window_in_the_middle():
    got = window_indices(101, frames=16, stride=4, rng=None)  # end (64 + 101) // 2 = 82
    np.testing.assert_array_equal(got, np.array(WINDOW) + 18)


def test_a_video_no_longer_than_the_window_is_spread_and_its_last_frame_repeated():
    exact = window_indices(64, frames=16, stride=4, rng=Fixed(99))
    np.testing.assert_array_equal(exact, WINDOW)
    # linspace(0, 21, 5) = 0, 5.25, 10.5, 15.75, 21, then 21 again; at most 20
    short = window_indices(21, frames=8, stride=4, rng=Fixed(99))
    np.testing.assert_array_equal(short, [0, 5, 10, 15, 20, 20, 20, 20])
    np.testing.assert_array_equal(window_indices(3, frames=2, stride=4, rng=None), [2, 2])


@given(st.integers(1, 300), st.integers(1, 32), st.integers(1, 8), st.integers(0, 2**32))
def test_windows_rise_and_stay_inside(num_frames, frames, stride, seed):
    for rng in (np.random.default_rng(seed), None):
        got = window_indices(num_frames, frames=frames, stride=stride, rng=rng)
        assert got.shape == (frames,) and got.dtype == np.int64 and (np.diff(got) >= 0).all()
        assert got.min() >= 0 and got.max() < num_frames


def test_the_middle_of_the_dense_rule_and_of_segments():
    # 101 - 64 + 1 = 38 places, the lower of the two in the middle
    got = dense_indices(101, frames=16, stride=4, rng=None)
    np.testing.assert_array_equal(got, 18 + 4 * np.arange(16))
    np.testing.assert_array_equal(dense_indices(10, frames=3, stride=4, rng=None), [0, 4, 8])
    # segments of 3 frames, of 4 (whose middle is the third), and a short video
    np.testing.assert_array_equal(segment_indices(14, frames=4, rng=None), [1, 4, 7, 10])
    np.testing.assert_array_equal(segment_indices(9, frames=2, rng=None), [2, 6])
    np.testing.assert_array_equal(segment_indices(2, frames=4, rng=None), [0, 0, 0, 1])


def test_dense_views_lie_evenly_over_the_video():
    # 200 frames: 50 at stride 4, room 34, starts int(k * 8.5)
    got = dense_views(200, frames=16, stride=4, clips=5)
    np.testing.assert_array_equal(got[:, 0], [0, 32, 68, 100, 136])
    assert (np.diff(got) == 4).all() and got[-1, -1] == 196
    one = dense_views(200, frames=16, stride=4, clips=1)
    np.testing.assert_array_equal(one, [68 + 4 * np.arange(16)])


def test_dense_views_of_a_short_video_are_all_the_same():
    # 10 frames: 0, 4, 8, and 8 again
    got = dense_views(10, frames=5, stride=4, clips=3)
    np.testing.assert_array_equal(got, [[0, 4, 8, 8, 8]] * 3)


def test_segment_views_are_those_of_both_released_versions():
    got = segment_views(50, frames=16, clips=2)
    tick = 50 / 16
    first = sorted(
        {*(int(tick * x) for x in range(16)), *(int(tick / 2 + tick * x) for x in range(16))}
    )
    np.testing.assert_array_equal(got, [first[0::2], first[1::2]])  # all 32 differ here
    listed = sorted(int(k * tick / 3 + tick * x) for k in range(3) for x in range(16))
    three = segment_views(50, frames=16, clips=3)
    np.testing.assert_array_equal(three, [listed[k::3] for k in range(3)])


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 8), st.integers(1, 12))
def test_views_rise_and_stay_inside(num_frames, frames, stride, clips):
    for got in (
        dense_views(num_frames, frames=frames, stride=stride, clips=clips),
        segment_views(num_frames, frames=frames, clips=clips),
        sparse_views(num_frames, frames=frames, clips=clips),
        seconds_views(num_frames, frames=frames, length=frames * stride / 1.7, clips=clips),
    ):
        assert got.shape == (clips, frames) and (np.diff(got) >= 0).all()
        assert got.min() >= 0 and got.max() < num_frames


# trunc(i * 63 / 15): 64 frames at the nominal rate, of which the last but one place is 58.8
STRETCH = [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]


def test_stretches_of_a_test_begin_at_multiples_of_a_whole_step():
    got = seconds_views(300, frames=16, length=64.0, clips=10)
    np.testing.assert_array_equal(got[:, 0], 26 * np.arange(10))  # floor(236 / 9) = 26
    np.testing.assert_array_equal(got - got[:, :1], [STRETCH] * 10)
    (one,) = seconds_views(301, frames=16, length=64.0, clips=1)
    np.testing.assert_array_equal(one, np.array(STRETCH) + 118)  # floor(237 / 2)
    np.testing.assert_array_equal(one, seconds_indices(301, frames=16, length=64.0, rng=None))


def test_a_stretch_has_the_same_seconds_at_any_rate():
    # 64 frames at 30 a second are 2.133 s: 53.3 frames at 25, where room is 246.67
    got = seconds_indices(300, frames=16, length=64 / 30 * 25, rng=None)
    np.testing.assert_array_equal(got, [int(123 + i * (64 / 30 * 25 - 1) / 15) for i in range(16)])
    assert got[-1] == 175
    (fast,) = seconds_views(300, frames=4, length=4 * 10 / 30 * 60, clips=1)
    np.testing.assert_array_equal(fast, [110, 136, 162, 189])  # 110 + i * 79 / 3


def test_a_stretch_begins_between_frames_too():
    class Begins:
        def uniform(self, low, high):
            self.asked = low, high
            return 7.9

    rng = Begins()
    got = seconds_indices(100, frames=16, length=64.0, rng=rng)
    assert rng.asked == (0.0, 36.0)
    np.testing.assert_array_equal(got, [int(7.9 + i * 4.2) for i in range(16)])
    assert got[-1] == 70  # 7.9 + 63: it may be the frame that begins within the last place


def test_a_video_shorter_than_the_stretch_repeats_its_last_frame():
    for rng in (np.random.default_rng(0), None):
        got = seconds_indices(20, frames=16, length=64.0, rng=rng)
        np.testing.assert_array_equal(got, [min(place, 19) for place in STRETCH])
    views = seconds_views(20, frames=16, length=64.0, clips=3)
    np.testing.assert_array_equal(views, [got] * 3)


def test_sparse_draws_from_stretches_that_share_their_ends():
    class Draws:
        def integers(self, low, high, *, endpoint):
            self.low, self.high = list(low), list(high)
            return np.array(high) if endpoint else None

    rng = Draws()
    got = sparse_indices(20, frames=4, rng=rng)  # s = 4.75: 0, 4.75, 9.5, 14.25, 19
    assert (rng.low, rng.high) == ([0, 5, 10, 14], [5, 10, 14, 19])  # 9.5 to the even one
    np.testing.assert_array_equal(got, [5, 10, 14, 19])


@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 8), st.integers(0, 2**32))
def test_sparse_is_the_released_rule(num_frames, frames, clips, seed):
    s = (num_frames - 1) / frames
    rng = np.random.default_rng(seed)
    drawn = np.stack([sparse_indices(num_frames, frames=frames, rng=rng) for _ in range(8)])
    for i in range(frames):
        assert round(s * i) <= drawn[:, i].min() and drawn[:, i].max() <= round(s * (i + 1))
    views = [
        [round(s * i) + int(s / (clips + 1) * (c + 1)) for i in range(frames)] for c in range(clips)
    ]
    np.testing.assert_array_equal(sparse_views(num_frames, frames=frames, clips=clips), views)
    middle = [round(s * i) + int(s / 2) for i in range(frames)]
    np.testing.assert_array_equal(sparse_indices(num_frames, frames=frames, rng=None), middle)


@given(st.integers(8, 400), st.integers(0, 2**32))
def test_segments_are_unmasked_teachers_sparse_pretraining_and_its_test(num_frames, seed):
    length = num_frames // 8
    drawn = segment_indices(num_frames, frames=8, rng=np.random.default_rng(seed))
    assert ((drawn - length * np.arange(8) >= 0) & (drawn - length * np.arange(8) < length)).all()
    tick = num_frames / 8
    listed = sorted(int(tick * i + half) for i in range(8) for half in (0, tick / 2))
    np.testing.assert_array_equal(
        segment_views(num_frames, frames=8, clips=2), [listed[c::2] for c in range(2)]
    )


def test_views_of_a_line():
    np.testing.assert_array_equal(view_starts(173, 3), [0, 86, 173])
    np.testing.assert_array_equal(view_starts(173, 2), [0, 173])
    # 86.5 and 87.5 to the even one, as the released centre crop
    assert [int(view_starts(room, 1)[0]) for room in (173, 175, 0)] == [86, 88, 0]
    with pytest.raises(ValueError, match="views must be positive"):
        view_starts(5, 0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        dense_indices(0, frames=16, stride=4, rng=Fixed(0))
