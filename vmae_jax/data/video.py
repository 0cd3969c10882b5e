"""Reads and writes video files. The only file of the package that touches PyAV."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_ENCODERS = {"h264": "libx264", "mpeg4": "mpeg4", "mjpeg": "mjpeg", "vp9": "libvpx-vp9"}


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
