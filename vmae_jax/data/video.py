"""Reads and writes video files. The only file of the package that touches PyAV.

Reading is frame-exact by construction: the file is read into memory once, its packets are listed
without decoding, and frame `i` is the i-th shown packet in presentation order. To get some frames,
decoding starts at the key frame before the first of them and stops after the last; only wanted
frames are converted to RGB. Nothing in a header (frame count, duration) is believed. Where packet
times cannot be trusted (missing, repeated, or contradicted by the decoder), all frames are decoded
and counted instead.

Every failure is a `VideoError` that names the file. A decoder that never comes back cannot be
interrupted from here; `pipeline` guards against that.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from vmae_jax.data.stages import stage
from vmae_jax.errors import UserError

# Containers by their FFmpeg names. Playlists and image sequences stay out: they open other files.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "gif", "ogg")
_ENCODERS = {"h264": "libx264", "mpeg4": "mpeg4", "mjpeg": "mjpeg", "vp9": "libvpx-vp9"}
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC
# AVI and ASF store decoding times only, which name pictures only where the two orders are one.
_UNORDERED_FORMATS = ("avi", "asf")
_IN_ORDER_CODECS = ("mjpeg", "vp8", "vp9", "libdav1d", "av1", "rawvideo", "ffv1", "huffyuv")
_SEQUENTIAL_CODECS = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "vc1", "wmv3")
_BUFFER_BYTES = 1 << 18
# PyAV 19 replaces bad bytes in metadata by itself and no longer takes the argument.
_OPEN_OPTIONS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
_KEPT_BYTES = 256 << 20  # of decoded pictures that may be held while they are counted


class VideoError(UserError, ValueError):
    """A video that cannot be used; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # exceptions with two arguments do not survive pickling otherwise
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Limits:
    """What one video may cost before it is refused."""

    max_bytes: int = 512 << 20
    max_pixels: int = 4096 * 4096  # of one frame
    max_frames: int = 500_000
    timeout_s: float = 60.0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, found by listing its packets.

    `num_frames` counts the frames a player would show, `width` and `height` are upright (rotation
    applied), `duration_s` spans the frames. `exact_times` is False where packet times cannot name
    frames; `num_frames` is then the number of packets until the file is decoded. `warnings` are
    sentences about things that are odd but survivable.
    """

    num_frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    codec: str
    format: str
    rotation: int
    exact_times: bool
    warnings: tuple[str, ...]


# Gives frame indices for (number of usable frames, frames per second or NaN).
Chooser = Callable[[int, float], Sequence[int]]


def read_bytes(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Reads a file whole, at most `limits.max_bytes`."""
    path = str(path)
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe or device may never return
            raise VideoError(path, "not a regular file")
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limits.max_bytes else file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise VideoError(path, "the file does not exist") from None
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from None
    if size > limits.max_bytes or len(data) > limits.max_bytes:
        raise VideoError(path, f"{size} bytes exceed the limit of {limits.max_bytes} bytes")
    if not data:
        raise VideoError(path, "the file is empty")
    return data


def probe(
    source: str | Path | bytes,
    limits: Limits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
) -> VideoInfo:
    """Describes a video after listing its packets and decoding its first picture.

    Args:
      source: a path, or the bytes of a file.
      limits: caps; exceeding one is a VideoError.
      name: what to call the video in errors when `source` is bytes.

    Raises:
      VideoError: no video stream, not a known container, no picture that decodes, or a limit.
    """
    with _opened(source, limits, name) as reader:
        return reader.describe()


def read_frames(
    source: str | Path | bytes,
    choose: Chooser | Sequence[int],
    limits: Limits = DEFAULT_LIMITS,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Decodes chosen frames, in any order and with repeats.

    Args:
      source: a path, or the bytes of a file.
      choose: frame indices, or a function from the number of usable frames and their rate to
        indices. The rate is the average that the file states (of a variable one, frames by
        duration), else what the times of the frames make, else NaN. It is asked again if decoding
        shows that the packets promised more frames than there are.
      limits: caps; exceeding one is a VideoError.
      start: seconds from the first frame; frames before it are not usable (indices count from it).
      end: seconds from the first frame; frames at or after it are not usable.
      name: what to call the video in errors when `source` is bytes.

    Returns:
      uint8 [n, H, W, 3], RGB, upright.

    Raises:
      VideoError: the file or a frame needed for the clip is unusable.
      IndexError: an index is outside the usable frames.
    """
    with _opened(source, limits, name) as reader:
        return reader.read(choose, start, end)


def iterate_frames(
    source: str | Path | bytes,
    limits: Limits = DEFAULT_LIMITS,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> Iterator[np.ndarray]:
    """Decodes all usable frames in order, one at a time; arguments as in `read_frames`.

    Yields:
      uint8 [H, W, 3], RGB, upright.

    Raises:
      VideoError: the file or any part of it is unusable.
    """
    with _opened(source, limits, name) as reader:
        yield from reader.frames(start, end)


def frame_times(
    source: str | Path | bytes,
    count: int,
    limits: Limits = DEFAULT_LIMITS,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """When the first `count` usable frames are shown, without decoding; see `read_frames`.

    Returns:
      float64 [count], seconds from the first frame of the file; where packets have no times that
      can be trusted, by the frame rate; NaN where there is none either.

    Raises:
      VideoError: the file is unusable.
    """
    with _opened(source, limits, name) as reader:
        return reader.times(count, start, end)


def count_frames(
    source: str | Path | bytes,
    limits: Limits = DEFAULT_LIMITS,
    *,
    name: str | None = None,
) -> int:
    """Decodes a whole video, converting nothing, and counts its frames.

    Raises:
      VideoError: any part of it is damaged.
    """
    with _opened(source, limits, name) as reader:
        return reader.count()


class _Guard:
    """A deadline, and the file object through which FFmpeg reads the bytes."""

    def __init__(self, data: bytes, path: str, timeout_s: float):
        self._view, self._pos = memoryview(data), 0
        self._path, self._timeout_s = path, timeout_s
        self._deadline = time.monotonic() + timeout_s

    def check(self) -> None:
        if time.monotonic() > self._deadline:
            raise VideoError(self._path, f"took longer than {self._timeout_s:g} s")

    def read(self, size: int) -> bytes:
        self.check()
        chunk = bytes(self._view[self._pos : self._pos + size])
        self._pos += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._pos, len(self._view))[whence]
        self._pos = max(0, base + offset)
        return self._pos

    def tell(self) -> int:
        return self._pos


@contextlib.contextmanager
def _opened(source: str | Path | bytes, limits: Limits, name: str | None) -> Iterator[_Reader]:
    """Opens a source; whatever goes wrong inside becomes a VideoError, and all is closed."""
    if isinstance(source, bytes):
        path, data = name or "<bytes>", source
        if len(data) > limits.max_bytes:
            raise VideoError(path, f"{len(data)} bytes exceed the limit of {limits.max_bytes}")
    else:
        path = str(source)
        data = read_bytes(path, limits)
    guard = _Guard(data, path, limits.timeout_s)

    def refuse(*_args, **_kwargs):
        raise VideoError(path, "refers to another file, which is not allowed")

    try:
        with contextlib.ExitStack() as opened:
            with stage("index"):
                container = av.open(
                    guard,
                    mode="r",
                    **_OPEN_OPTIONS,
                    buffer_size=_BUFFER_BYTES,
                    io_open=refuse,
                    container_options={"format_whitelist": ",".join(FORMATS)},
                )
                reader = _Reader(opened.enter_context(container), guard, path, limits)
            yield reader
    except VideoError:
        raise
    except av.error.InvalidDataError as error:
        raise VideoError(path, f"not a readable video ({error.strerror})") from None
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be decoded ({error})") from None


class _Reader:
    """One open video: its packets, and frames on demand."""

    def __init__(self, container, guard: _Guard, path: str, limits: Limits):
        self._path, self._limits, self._guard = path, limits, guard
        self._stream = _moving_stream(container, path)
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise VideoError(path, "is in a codec that this build of FFmpeg does not know")
        self._codec.thread_count = 1  # parallelism comes from workers, one thread each
        if self._codec.name in ("h264", "hevc"):
            # Otherwise these patch damaged pictures with guesses and say nothing.
            self._codec.options = {"err_detect": "explode"}
        self._check_size(self._codec.width, self._codec.height)
        self._converter = VideoReformatter()
        self._format = container.format.name
        self._list_packets(container)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise VideoError(
                self._path,
                f"{width}x{height} exceeds the limit of {self._limits.max_pixels} pixels",
            )

    def _list_packets(self, container) -> None:
        """Fills `_packets` (from the first key frame on) and `_shown_pts` (presentation order)."""
        packets = []
        self._num_listed = 0
        for packet in _demux(container, self._stream, self._path):
            self._guard.check()
            if not packet.size:
                continue
            self._num_listed += 1
            if self._num_listed > self._limits.max_frames:
                raise VideoError(self._path, f"more than {self._limits.max_frames} frames")
            if packet.is_corrupt:  # cut short, e.g. at the end of a truncated file
                continue
            if packets or packet.is_keyframe:
                packets.append(packet)
        if not packets:
            raise VideoError(self._path, "holds no decodable pictures")
        self._packets = packets
        # Pictures that lead the first key frame lean on pictures that are not there.
        first = packets[0].pts
        pts = [p.pts for p in packets if not p.is_discard]
        self.exact_times = (
            None not in pts
            and len(set(pts)) == len(pts)
            and self._codec.name not in _SEQUENTIAL_CODECS
            and (self._format not in _UNORDERED_FORMATS or self._codec.name in _IN_ORDER_CODECS)
        )
        if self.exact_times:
            pts = sorted(p for p in pts if first is None or p >= first or packets[0].is_discard)
        if not pts:
            raise VideoError(self._path, "shows no pictures")
        self._shown_pts = pts

    def describe(self) -> VideoInfo:
        """Decodes the first picture, for its rotation and to know that something decodes."""
        stream, count = self._stream, len(self._shown_pts)
        frame = next(self._decode(self._packets), None)
        if frame is None:
            raise VideoError(self._path, "no picture can be decoded")
        rotation = _quarter_turns(frame) * 90
        upright = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
        span, fps = self._span_s(), self.rate()
        warnings = []
        if stream.frames and self._num_listed < stream.frames:
            warnings.append(
                f"the header counts {stream.frames} frames, the file holds {self._num_listed}"
            )
        return VideoInfo(
            num_frames=count,
            fps=0.0 if math.isnan(fps) else fps,
            duration_s=span + (0.0 if math.isnan(fps) else 1 / fps),
            width=upright[0],
            height=upright[1],
            codec=self._codec.name,
            format=self._format,
            rotation=rotation,
            exact_times=self.exact_times,
            warnings=tuple(warnings),
        )

    def rate(self) -> float:
        """Frames per second; NaN if neither header nor times say."""
        stated = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if stated > 0:
            return stated
        span = self._span_s()
        return (len(self._shown_pts) - 1) / span if span > 0 else math.nan

    def _span_s(self) -> float:
        """Seconds from the first frame shown to the last."""
        times = [p for p in self._shown_pts if p is not None]
        return float((max(times) - min(times)) * self._stream.time_base) if times else 0.0

    def count(self) -> int:
        count = sum(1 for _ in self._decode(self._packets))
        if not count:
            raise VideoError(self._path, "no picture can be decoded")
        return count

    def read(
        self, choose: Chooser | Sequence[int], start: float | None, end: float | None
    ) -> np.ndarray:
        if self.exact_times:
            first, stop = self._usable(start, end)
            chosen = self._choose(choose, stop - first) + first
            frames = self._read_exact(chosen)
            if frames is not None:
                return frames
        return self._read_counted(choose, start, end)

    def frames(self, start: float | None, end: float | None) -> Iterator[np.ndarray]:
        if not self.exact_times:
            count = self.count()
            first, stop = self._range(self._counted_times(count, start, end), start, end)
            for i, frame in enumerate(self._decode(self._packets)):
                if first <= i < stop:
                    yield self._to_rgb(frame)
            return
        first, stop = self._usable(start, end)
        wanted = set(self._shown_pts[first:stop])
        for frame in self._decode(self._packets):
            if frame.pts in wanted:
                wanted.remove(frame.pts)
                yield self._to_rgb(frame)
        if wanted:
            raise VideoError(
                self._path, f"{len(wanted)} of {stop - first} frames cannot be decoded"
            )

    def times(self, count: int, start: float | None, end: float | None) -> np.ndarray:
        if self.exact_times:
            first, _ = self._usable(start, end)
            origin, unit = self._shown_pts[0], self._stream.time_base
            shown = self._shown_pts[first : first + count]
            return np.array([float((p - origin) * unit) for p in shown])
        listed = self._counted_times(len(self._shown_pts), start, end)
        first, _ = self._range(listed, start, end)
        rate = float(self._stream.average_rate or self._stream.guessed_rate or math.nan)
        return (first + np.arange(count)) / rate

    def _counted_times(self, count: int, start: float | None, end: float | None) -> np.ndarray:
        """Times in seconds of frames that are only counted."""
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if (start is not None or end is not None) and rate <= 0:
            raise VideoError(self._path, "has neither usable times nor a frame rate for start/end")
        return np.arange(count) / (rate or 1.0)

    def _usable(self, start: float | None, end: float | None) -> tuple[int, int]:
        """The half-open range of frames whose times lie in [start, end)."""
        if start is None and end is None:
            return 0, len(self._shown_pts)
        origin, unit = self._shown_pts[0], self._stream.time_base
        times = np.array([float((p - origin) * unit) for p in self._shown_pts])
        return self._range(times, start, end)

    def _range(self, times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
        # Half a microsecond of slack: times in a text file are rounded.
        first = 0 if start is None else int(np.searchsorted(times, start - 5e-7))
        stop = len(times) if end is None else int(np.searchsorted(times, end - 5e-7))
        if stop <= first:
            length = times[-1] if len(times) else 0.0
            raise VideoError(
                self._path, f"no frame between {start} s and {end} s; the last is at {length:.3f} s"
            )
        return first, stop

    def _choose(self, choose: Chooser | Sequence[int], num_frames: int) -> np.ndarray:
        if callable(choose):
            choose = choose(num_frames, self.rate())
        chosen = np.asarray(choose, dtype=np.int64)
        if chosen.ndim != 1 or not chosen.size:
            raise ValueError(f"Frame indices must be a non-empty vector, got shape {chosen.shape}.")
        outside = chosen[(chosen < 0) | (chosen >= num_frames)]
        if outside.size:
            raise IndexError(
                f"{self._path}: frame {outside[0]} asked for; usable are 0..{num_frames - 1}."
            )
        return chosen

    def _read_exact(self, chosen: np.ndarray) -> np.ndarray | None:
        """Decodes by packet times; None if the decoder contradicts them."""
        wanted = {self._shown_pts[i]: i for i in np.unique(chosen)}
        keys = [
            k
            for k, p in enumerate(self._packets)
            if p.is_keyframe and p.pts is not None and p.pts <= min(wanted)
        ]
        stop = 1 + max(k for k, p in enumerate(self._packets) if p.pts in wanted)
        nearest = keys[-1] if keys else 0
        if nearest:
            # Some streams mark places as key frames from which the picture only builds up. The
            # beginning works for these, at the price of more decoding.
            with contextlib.suppress(VideoError):
                frames = self._decode_wanted(nearest, stop, wanted, chosen)
                if frames is not None:
                    return frames
        return self._decode_wanted(0, stop, wanted, chosen)

    def _decode_wanted(
        self, begin: int, stop: int, wanted: dict[int, int], chosen: np.ndarray
    ) -> np.ndarray | None:
        key = self._packets[begin]
        packets = [
            # Pictures shown before the key frame lean on ones that are left out here.
            p
            for p in self._packets[begin:stop]
            if key.pts is None or p.pts >= key.pts
        ]
        found, last = {}, None
        for frame in self._decode(packets, wanted):
            if frame.pts is None or (last is not None and frame.pts <= last):
                return None
            last = frame.pts
            if last in wanted:
                found[wanted[last]] = self._to_rgb(frame)
                if len(found) == len(wanted):
                    return self._stack(found, chosen)
        return None

    def _read_counted(
        self, choose: Chooser | Sequence[int], start: float | None, end: float | None
    ) -> np.ndarray:
        """Counts the frames that decode, in the order in which they come."""
        picture_bytes = self._codec.width * self._codec.height * 3 // 2
        keep = picture_bytes * len(self._packets) <= _KEPT_BYTES
        if keep:
            frames = list(self._decode(self._packets))
            count = len(frames)
        else:  # decoded a second time below, rather than held
            count = self.count()
        first, stop = self._range(self._counted_times(count, start, end), start, end)
        chosen = self._choose(choose, stop - first) + first
        wanted, found = set(chosen.tolist()), {}
        for i, frame in enumerate(frames if keep else self._decode(self._packets)):
            if i in wanted:
                found[i] = self._to_rgb(frame)
                if len(found) == len(wanted):
                    break
        return self._stack(found, chosen)

    def _decode(self, packets: list, wanted: dict | None = None) -> Iterator[av.VideoFrame]:
        """Yields frames in presentation order; damage anywhere on the way is an error.

        With `wanted`, pictures that are neither wanted nor needed by others may be left out.
        """
        codec, skip = self._codec, None
        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"  # an earlier pass may have been left half-way
        # H.264 alone marks pictures that nothing leans on in a way that can be relied upon.
        may_skip = wanted is not None and codec.name == "h264"
        for packet in [*packets, None]:
            self._guard.check()
            if may_skip and packet is not None:
                mode = "DEFAULT" if packet.pts in wanted else "NONREF"
                if mode != skip:
                    codec.skip_frame = skip = mode
            try:
                frames = codec.decode(packet)
            except av.error.InvalidDataError:
                raise VideoError(self._path, "the picture data is damaged") from None
            for frame in frames:
                self._guard.check()
                if frame.is_corrupt:
                    raise VideoError(self._path, "the picture data is damaged")
                self._check_size(frame.width, frame.height)
                yield frame

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        with stage("convert"):
            rgb = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            return np.rot90(rgb, _quarter_turns(frame))

    def _stack(self, found: dict[int, np.ndarray], chosen: np.ndarray) -> np.ndarray:
        shapes = {frame.shape for frame in found.values()}
        if len(shapes) > 1:
            raise VideoError(self._path, f"the picture size changes: {sorted(shapes)}")
        with stage("convert"):
            return np.stack([found[i] for i in chosen.tolist()])


def _moving_stream(container, path: str):
    """The first video stream that is not an attached picture (cover art)."""
    streams = [s for s in container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
    if not streams:
        raise VideoError(path, "holds no video stream")
    return streams[0]


def _demux(container, stream, path: str) -> Iterator[av.Packet]:
    try:
        yield from container.demux(stream)
    except IndexError:  # PyAV looks the new stream up in a list made on opening
        raise VideoError(path, "a further stream appears in the middle of the file") from None


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the picture upright; other angles are ignored."""
    return round(frame.rotation / 90) % 4 if frame.rotation % 90 == 0 else 0


def write_video(
    path: str | Path,
    frames: np.ndarray,
    *,
    fps: float | Fraction,
    codec: str = "h264",
    gop: int | None = None,
    crf: int = 18,
) -> None:
    """Encodes frames into a file; the container follows from the file's suffix.

    The file appears under its name only once it is complete.

    Args:
      path: where to write; the folder must exist.
      frames: uint8 [T, H, W, 3], RGB; H and W even (4:2:0 pictures).
      fps: frames per second.
      codec: one of "h264", "mpeg4", "mjpeg", "vp9".
      gop: a key frame every so many frames; None leaves it to the encoder.
      crf: constant quality for h264 and vp9, lower is better.

    Raises:
      ValueError: frames, rate or codec are not of this kind.
    """
    path, frames = Path(path), np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(
            f"write_video takes uint8 frames [T, H, W, 3], got {frames.dtype} {frames.shape}."
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"Frames of {width}x{height} cannot be written with 4:2:0 colour; crop or pad to "
            "even sides first."
        )
    if codec not in _ENCODERS:
        raise ValueError(f"Unknown codec {codec!r}; choose one of {sorted(_ENCODERS)}.")
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"fps must be positive, got {fps}.")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    options = {"crf": str(crf)} if codec in ("h264", "vp9") else {}
    if codec == "h264":
        options["x264-params"] = "mbtree=0"  # with it, equal frames give unequal files
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream(_ENCODERS[codec], rate=rate, options=options)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            # One thread: the bytes written must not depend on the machine.
            stream.codec_context.thread_count = 1
            if codec in ("mpeg4", "mjpeg"):
                stream.codec_context.bit_rate = max(1_000_000, int(8 * height * width * rate / 10))
            if gop is not None:
                stream.codec_context.gop_size = gop
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def encode_mp4(frames: Iterable[np.ndarray], *, fps: float | Fraction, gop: int, crf: int) -> bytes:
    """Encodes frames for random access and cheap decoding: H.264 with a fixed key frame interval.

    The bytes depend on the frames and the encoder's version only, not on the machine.

    Args:
      frames: uint8 [H, W, 3] each, RGB, all of one size; H and W even. At least one.
      fps: frames per second; where it is unknown, any number.
      gop: a key frame every so many frames.
      crf: constant quality, lower is better.

    Returns:
      An MP4 file.
    """
    rate = Fraction(fps).limit_denominator(1001)
    options = {
        "crf": str(crf),
        "tune": "fastdecode",
        # With mbtree, equal frames give unequal files.
        "x264-params": f"mbtree=0:keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0",
    }
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()
