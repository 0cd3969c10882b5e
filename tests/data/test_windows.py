import dataclasses
import itertools
import threading
import weakref

import numpy as np
import pytest

from vmae_jax.data import windows as module
from vmae_jax.data.clips import PipelineError, PipelineOptions
from vmae_jax.data.sources import open_source
from vmae_jax.data.video import read_frames, write_video
from vmae_jax.data.windows import End, Sliding, Window, WindowFeed, windows


def numbered(count):
    return (np.full((1, 1, 1), i) for i in range(count))


def indices(count, *sliding):
    return [w.index.tolist() for w in windows(numbered(count), Sliding(*sliding))]


def test_windows_that_lie_whole_in_the_video():
    # 3 frames, 2 apart, a window every 4: from 8 it would reach frame 12.
    assert indices(11, 3, 2, 4) == [[0, 2, 4], [4, 6, 8]]
    assert indices(13, 3, 2, 4) == [[0, 2, 4], [4, 6, 8], [8, 10, 12]]
    # Frames between windows are passed over.
    assert indices(12, 2, 1, 5) == [[0, 1], [5, 6], [10, 11]]


def test_a_short_video_gives_one_window_padded_with_its_last_frame():
    (window,) = windows(numbered(4), Sliding(3, 2, 4))
    assert window.padded and window.index.tolist() == [0, 2, 3]
    assert [int(frame.item()) for frame in window.frames] == [0, 2, 3]
    (whole,) = windows(numbered(5), Sliding(3, 2, 4))
    assert not whole.padded and whole.index.tolist() == [0, 2, 4]
    assert indices(0, 3, 2, 4) == []


@pytest.mark.parametrize("count", [16, 17, 19, 20, 40])
def test_starts_of_temporal_action_detection(count):
    starts = list(range(0, count - 15, 4))  # as released
    assert indices(count, 16, 1, 4) == [list(range(s, s + 16)) for s in starts]


def test_frames_are_those_of_the_index_and_prepared_once():
    for count, frames, stride, step in itertools.product((1, 7, 20), (1, 3), (1, 3), (1, 2, 9)):
        prepared = []

        def prepare(frame, prepared=prepared):
            prepared.append(int(frame.item()))
            return -frame

        span = (frames - 1) * stride + 1
        found = list(windows(numbered(count), Sliding(frames, stride, step), prepare))
        if count >= span:
            starts = range(0, count - span + 1, step)
            expected = [[s + i * stride for i in range(frames)] for s in starts]
            assert [w.index.tolist() for w in found] == expected
        for window in found:
            assert [-int(frame.item()) for frame in window.frames] == window.index.tolist()
        assert len(prepared) == len(set(prepared))


def test_no_more_frames_are_held_than_a_window_spans():
    alive = weakref.WeakSet()

    class Frame(np.ndarray):  # a plain array cannot be in a set
        __hash__ = object.__hash__

    most = 0
    frames = (np.zeros(1).view(Frame) for _ in range(50))

    def watched():
        nonlocal most
        for frame in frames:
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    for window in windows(watched(), Sliding(4, 2, 3)):
        del window
    assert 7 <= most <= 7 + 2  # those held, the one that comes and the one that goes


@pytest.mark.parametrize("field", ["frames", "stride", "step"])
def test_a_window_is_positive(field):
    with pytest.raises(ValueError, match=f"{field} of a sliding window must be positive, got 0"):
        Sliding(**{"frames": 1, "stride": 1, "step": 1, field: 0})


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Three videos of noise, 9, 12 and 15 frames at 10 a second, and one that is none."""
    folder, rng = tmp_path_factory.mktemp("windows"), np.random.default_rng(0)
    for i, count in enumerate((9, 12, 15)):
        frames = rng.integers(0, 256, (count, 24, 32, 3), np.uint8)
        write_video(folder / f"v{i}.mp4", frames, fps=10)
    (folder / "bad.mp4").write_text("no video")
    rows = "v0.mp4,2,,\nv1.mp4,0,0.45,\nbad.mp4,1,,\nv2.mp4,,,\n"
    (folder / "list.csv").write_text(f"path,label,start,end\n{rows}")
    return folder


def feed(listed, **changes):
    manifest = str(listed / "list.csv")
    options = PipelineOptions(manifest=manifest, size=(16, 16), select="centre", crop="none")
    arguments = {
        "sliding": Sliding(4, 1, 4),
        "options": options,
        "workers": 2,
        "ahead": 2,
        **changes,
    }
    return WindowFeed(open_source(manifest), [0, 1, 2, 3], **arguments)


def test_windows_of_several_videos_come_in_order_each_with_its_end(listed):
    with feed(listed) as events:
        found = list(events)
    starts = {n: [e.index[0] for m, e in found if m == n and isinstance(e, Window)] for n in (0, 3)}
    assert starts == {0: [0, 4], 3: [0, 4, 8]}
    ends = {n: e for n, e in found if isinstance(e, End)}
    assert ends[0].label == 2 and ends[3].label == -1
    np.testing.assert_allclose(ends[0].times, np.arange(9) / 10, atol=1e-6)
    # Frames count from the first usable one, times from the first of the file.
    np.testing.assert_allclose(ends[1].times, np.arange(5, 12) / 10, atol=1e-6)
    assert "not a readable video" in ends[2].error.reason
    first = next(e for n, e in found if n == 1)
    whole = read_frames(listed / "v1.mp4", [5])
    assert first.frames[0].shape == (16, 16, 3)
    assert abs(first.frames[0].mean() - whole.mean()) < 3


def test_leaving_early_ends_the_threads(listed):
    before = threading.active_count()
    with feed(listed, sliding=Sliding(1, 1, 1), ahead=1) as events:
        next(iter(events))
    assert threading.active_count() == before


def test_an_error_that_is_not_the_videos_is_raised(listed, monkeypatch):
    def broken(*_args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "crop_frame", broken)
    with feed(listed) as events, pytest.raises(RuntimeError, match="a bug"):
        list(events)


def test_a_decoder_that_hangs_is_named(listed, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(module, "crop_frame", lambda *_args: released.wait(60))
    options = dataclasses.replace(feed(listed)._options, stall_timeout_s=0.5)
    with feed(listed, options=options, workers=1) as events:
        with pytest.raises(
            PipelineError, match=r"no window came for 0\.5 s .*v0\.mp4; put an empty"
        ):
            list(events)
        released.set()
