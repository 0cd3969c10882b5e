"""Frame-exact reading, limits, and refusals. Files are made here, so frames are known."""

import os
import pickle
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_jax.data.video import (
    Limits,
    VideoError,
    count_frames,
    probe,
    read_bytes,
    read_frames,
    write_video,
)


def numbered_frames(count, height=48, width=64):
    """Frame i shows i in binary as eight bright or dark bars, readable after lossy coding."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    bar = width // 8
    for i in range(count):
        for bit in range(8):
            frames[i, :, bit * bar : (bit + 1) * bar] = 220 if i >> bit & 1 else 30
    return frames


def numbers(frames):
    bar = frames.shape[2] // 8
    bits = [frames[:, :, b * bar + 2 : (b + 1) * bar - 2].mean((1, 2, 3)) > 125 for b in range(8)]
    return sum(bit.astype(int) << b for b, bit in enumerate(bits)).tolist()


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    write_video(path, numbered_frames(100), fps=25, gop=12)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "gop"),
    [
        ("h264", "mp4", 12),
        ("h264", "mkv", 250),
        ("mpeg4", "avi", 10),
        ("mjpeg", "avi", 1),
        ("vp9", "webm", 8),
    ],
)
def test_what_is_written_is_read_back_frame_by_frame(tmp_path, codec, suffix, gop):
    path = tmp_path / f"v.{suffix}"
    write_video(path, numbered_frames(40), fps=24, codec=codec, gop=gop)
    info = probe(path)
    assert (info.num_frames, info.width, info.height) == (40, 64, 48)
    assert info.fps == pytest.approx(24) and info.duration_s == pytest.approx(40 / 24, abs=0.01)
    assert count_frames(path) == 40
    for wanted in ([0], [39], [7, 8, 9], [30, 2, 30, 15], list(range(40))):
        assert numbers(read_frames(path, wanted)) == wanted


def write_with(path, encoder, options, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


AWKWARD = [
    ("libx264", {"x264-params": "open-gop=1:bframes=4:b-pyramid=normal:keyint=20"}),
    ("libx264", {"x264-params": "bframes=8:b-pyramid=strict:keyint=20"}),
    ("libx264", {"x264-params": "intra-refresh=1:keyint=30"}),
    ("libx264", {"x264-params": "interlaced=1:keyint=20"}),
    ("libx265", {"x265-params": "open-gop=1:bframes=4:keyint=20:log-level=none"}),
    ("mpeg2video", {"bf": "2", "g": "12"}),
]
CONTAINERS = ("mp4", "mkv", "ts", "avi", "flv", "asf")
UNWRITABLE = {("libx265", "avi"), ("libx265", "asf"), ("mpeg2video", "flv")}  # not by FFmpeg


@pytest.mark.parametrize(
    ("encoder", "options", "suffix"),
    [(e, o, s) for e, o in AWKWARD for s in CONTAINERS if (e, s) not in UNWRITABLE],
)
def test_random_access_is_exact_in_awkward_streams(tmp_path, encoder, options, suffix):
    """Open groups of pictures, pyramids, gradual refresh, containers without showing times."""
    path = tmp_path / f"v.{suffix}"
    write_with(path, encoder, options, numbered_frames(90))
    whole = read_frames(path, lambda n, _: range(n))
    assert numbers(whole) == list(range(90))
    rng = np.random.default_rng(0)
    for chosen in ([0], [89], *rng.integers(90, size=(12, 4)).tolist()):
        np.testing.assert_array_equal(read_frames(path, chosen), whole[chosen])


def test_only_what_is_needed_is_decoded(clip, monkeypatch):
    from vmae_jax.data import video

    fed, decode = [], video._Reader._decode

    def spy(self, packets, wanted=None):
        fed.append(len(packets))
        return decode(self, packets, wanted)

    monkeypatch.setattr(video._Reader, "_decode", spy)
    assert numbers(read_frames(clip, [50])) == [50]
    assert sum(fed) <= 12 + 3  # one group of pictures and reordering, not 100 packets


def test_the_chooser_is_told_the_true_count(clip):
    asked = []
    frames = read_frames(clip, lambda n, _: asked.append(n) or [n - 1])
    assert asked == [100] and numbers(frames) == [99]


def test_the_chooser_is_told_the_average_rate(clip, tmp_path):
    rates = []
    read_frames(clip, lambda _, fps: rates.append(fps) or [0])
    # Of 40 frames 20 last 0.1 s and 19 0.02 s, the last one a tick of 1 ms: 2.381 s in all.
    write_at(tmp_path / "variable.mp4", np.cumsum([0, *[100] * 20, *[20] * 19]))
    read_frames(tmp_path / "variable.mp4", lambda _, fps: rates.append(fps) or [0])
    np.testing.assert_allclose(rates, [25.0, 40 / 2.381], rtol=1e-3)


def write_at(path, times_ms):
    """Grey frames that are shown at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time_ms), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("start", "end", "first", "count"),
    [
        (None, None, 0, 100),
        (1.0, None, 25, 75),
        (None, 2.0, 0, 50),
        (1.0, 2.0, 25, 25),
        (0.99, 1.01, 25, 1),
        (3.96, 99, 99, 1),
    ],
)
def test_start_and_end_are_seconds_and_half_open(clip, start, end, first, count):
    asked = []
    frames = read_frames(clip, lambda n, _: asked.append(n) or [0], start=start, end=end)
    assert asked == [count] and numbers(frames) == [first]


def test_times_outside_the_video_are_an_error(clip):
    with pytest.raises(VideoError, match=r"no frame between 9.0 s and None s; the last is at 3.96"):
        read_frames(clip, [0], start=9.0)


def test_times_work_without_timestamps_too(tmp_path):
    path = tmp_path / "v.avi"
    write_video(path, numbered_frames(50), fps=25, codec="mpeg4")
    assert not probe(path).exact_times
    assert numbers(read_frames(path, [0, 24], start=1.0, end=2.0)) == [25, 49]


def test_bytes_and_paths_give_the_same(clip):
    np.testing.assert_array_equal(read_frames(clip.read_bytes(), [3]), read_frames(clip, [3]))


def test_indices_outside_are_the_callers_error(clip):
    for wanted in ([100], [-1]):
        with pytest.raises(IndexError, match=r"usable are 0\.\.99"):
            read_frames(clip, wanted)


def test_colours_survive(tmp_path):
    frames = np.empty((4, 32, 32, 3), np.uint8)
    frames[:] = np.array([200, 60, 20])
    write_video(tmp_path / "c.mp4", frames, fps=5, crf=4)
    got = read_frames(tmp_path / "c.mp4", [2]).astype(int)
    assert np.abs(got - [200, 60, 20]).max() <= 6  # 8-bit YUV and back; swapped channels: 180


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_bytes=100), "exceed the limit of 100"),
        (Limits(max_pixels=64 * 48 - 1), "64x48 exceeds the limit"),
        (Limits(max_frames=99), "more than 99 frames"),
        (Limits(timeout_s=-1.0), "took longer"),
    ],
)
def test_limits_refuse(clip, limits, reason):
    for source in (clip, clip.read_bytes()):
        with pytest.raises(VideoError, match=reason):
            read_frames(source, [0], limits)


def test_the_deadline_is_looked_at_while_decoding(clip, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def choose(_count, _fps):
        now[0] = 11.0
        return [0]

    with pytest.raises(VideoError, match="took longer than 10 s"):
        read_frames(clip, choose, Limits(timeout_s=10.0))


def test_absent_empty_and_odd_files_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 100)
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would never return
    for name, reason in (
        ("absent.mp4", "does not exist"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "not a readable video"),
        ("pipe.mp4", "not a regular file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(VideoError, match=reason) as error:
            read_frames(tmp_path / name, [0])
        assert str(tmp_path / name) in str(error.value)


def test_damaged_files_decode_or_are_refused_and_nothing_else(tmp_path):
    """Random damage of three kinds; more of the same was run for longer by hand."""
    rng = np.random.default_rng(0)
    outcomes = []
    for suffix, codec in (("mp4", "h264"), ("avi", "mpeg4"), ("webm", "vp9")):
        path = tmp_path / f"v.{suffix}"
        write_video(path, numbered_frames(20), fps=25, codec=codec)
        whole = path.read_bytes()
        for kind in range(60):
            data = bytearray(whole)
            place = int(rng.integers(1, len(data)))
            if kind % 3 == 0:
                data = data[:place]
            elif kind % 3 == 1:
                data[place : place + 300] = bytes(len(data[place : place + 300]))
            else:
                for i in rng.integers(len(data), size=10):
                    data[i] = rng.integers(256)
            try:
                frames = read_frames(bytes(data), lambda n, _: [0, n - 1], Limits(timeout_s=10))
                outcomes.append(frames.shape[0] == 2)
            except VideoError:
                outcomes.append(None)
    assert False not in outcomes and {True, None} <= set(outcomes)


def test_playlists_cannot_open_other_files(tmp_path, clip):
    for name, text in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", f"ffconcat version 1.0\nfile '{clip}'\n"),
        ("list.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError):
            read_frames(tmp_path / name, [0])


def test_files_do_not_stay_open(tmp_path, clip):
    (tmp_path / "bad.mp4").write_bytes(clip.read_bytes()[:3000])
    before = open_files()
    for _ in range(10):
        read_frames(clip, [1])
        with pytest.raises(VideoError):
            read_frames(tmp_path / "bad.mp4", [1])
    assert open_files() == before


def test_errors_survive_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is empty", "a.mp4: is empty")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 31, 32, 3), np.uint8), "even sides"),
        (np.zeros((2, 32, 32, 3), np.float32), "uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "uint8 frames"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "v.mp4", frames, fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_read_up_to_the_limit_only(clip):
    assert read_bytes(clip) == clip.read_bytes()
