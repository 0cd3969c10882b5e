"""Crops on the host: choose a box as the released loaders do, cut it out, resize it.

Or leave cutting and resizing to the device (`ops/resize`) and lay the frames on a canvas of fixed
size. Frames stay uint8. Flip and normalisation happen on the device (`ops/preprocess`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vmae_jax.data.sampling import view_starts

FILTERS = ("antialias", "bilinear")


class Box(NamedTuple):
    """A rectangle in pixels; it may reach past the frame (see `multi_scale_crop_box`)."""

    left: int
    top: int
    width: int
    height: int


def multi_scale_crop_box(
    height: int,
    width: int,
    *,
    size: tuple[int, int],
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
    rng: np.random.Generator,
) -> Box:
    """Draws a crop of one of several sizes at one of 13 fixed places.

    Sides are the short side of the frame times a scale, rounded down; a side within 2 px of the
    target is set to the target, which can make the box 1-2 px larger than a frame (the cut is then
    filled with black, as released). Width and height may differ by one place in `scales`: 10 pairs
    for 4 scales. Places: corners, centre, edge mid-points, quarter points.

    Args:
      size: (height, width) that the crop will be resized to.

    Source: released VideoMAE multi-scale crop, after that of TSN.
    """
    base = min(height, width)
    sides = [int(base * scale) for scale in scales]
    heights = [size[0] if abs(side - size[0]) < 3 else side for side in sides]
    widths = [size[1] if abs(side - size[1]) < 3 else side for side in sides]
    pairs = [(w, h) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
    crop_w, crop_h = pairs[int(rng.integers(len(pairs)))]
    step_x, step_y = (width - crop_w) // 4, (height - crop_h) // 4
    x, y = _PLACES[int(rng.integers(len(_PLACES)))]
    return Box(x * step_x, y * step_y, crop_w, crop_h)


# (x, y) in quarters of the room that the crop leaves.
_PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


def centre_crop_box(height: int, width: int, *, size: tuple[int, int]) -> Box:
    """The largest centred box with the aspect of `size` (height, width)."""
    if height * size[1] <= width * size[0]:
        crop_h, crop_w = height, max(1, round(height * size[1] / size[0]))
    else:
        crop_h, crop_w = max(1, round(width * size[0] / size[1])), width
    return Box((width - crop_w) // 2, (height - crop_h) // 2, crop_w, crop_h)


def random_resized_crop_box(
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws a crop of random area, aspect and place: the fine-tuning rule.

    Area uniform, width / height log-uniform, sides rounded, place uniform. If none of 10 draws fits
    in the frame, the largest centred box whose aspect is within the range.

    Args:
      area: least and most, as shares of the frame.
      aspect: least and most width / height.

    Source: released fine-tuning of VideoMAE and V2, after that of PyTorch.
    """
    lowest, highest = aspect
    for _ in range(_CROP_TRIES):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(lowest), math.log(highest)))
        crop_w, crop_h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top = int(rng.integers(height - crop_h + 1))
            return Box(int(rng.integers(width - crop_w + 1)), top, crop_w, crop_h)
    crop_w, crop_h = width, height
    if width < lowest * height:
        crop_h = max(1, round(width / lowest))
    elif width > highest * height:
        crop_w = max(1, round(height * highest))
    return Box((width - crop_w) // 2, (height - crop_h) // 2, crop_w, crop_h)


_CROP_TRIES = 10


def view_crops(
    frames: np.ndarray,
    *,
    size: tuple[int, int],
    crops: int,
    resample: str,
    short_side: int = 0,
) -> list[np.ndarray]:
    """The crops of a test: frames resized until they just cover the size, cut side by side.

    For a square that is: the short side becomes the size, and crop c of C is the square that begins
    at int(c * room / (C - 1)) of the long side; a single one is in the middle. Along the other
    side, where there is room, all are in the middle.

    Args:
      frames: uint8 [T, H, W, C].
      size: (height, width) of the crops.
      crops: how many.
      resample: one of `FILTERS`; the released test's is "bilinear".
      short_side: the frames are made to cover the size enlarged until its shorter side is this,
        e.g. 256 before 224 is cut; 0: the size as it is.

    Returns:
      `crops` arrays, uint8 [T, height, width, C].

    Source: released test loaders of VideoMAE and V2, the single crop being V2's validation;
    `short_side` is PySlowFast's, which rounds the middle up where this rounds half to even.
    """
    height, width = frames.shape[1:3]
    zoom = short_side / min(size) if short_side else 1.0
    covered = round(size[0] * zoom), round(size[1] * zoom)
    tall = height * size[1] > width * size[0]
    covering = covered[0], max(covered[1], int(covered[0] * width / height))
    if tall:
        covering = max(covered[0], int(covered[1] * height / width)), covered[1]
    frames = _resize(frames, covering, resample)
    room = covering[0] - size[0], covering[1] - size[1]
    middle = [np.repeat(view_starts(side, 1), crops) for side in room]
    tops = view_starts(room[0], crops) if tall else middle[0]
    lefts = middle[1] if tall else view_starts(room[1], crops)
    return [
        frames[:, top : top + size[0], left : left + size[1]]
        for top, left in zip(tops, lefts, strict=True)
    ]


def crop_resize(
    frames: np.ndarray, box: Box, size: tuple[int, int], resample: str = "antialias"
) -> np.ndarray:
    """Cuts one box out of all frames and resizes it.

    The cut comes first, so nothing outside the box enters.

    Args:
      frames: uint8 [T, H, W, C], C 3 or 1.
      box: parts outside the frame are black.
      size: (height, width) of the result.
      resample: "antialias", Pillow's bilinear filter, which averages when it shrinks: the kernel of
        the released pretraining. "bilinear": between the two nearest pixels on each axis (centres
        at halves), whatever the scale: that of the released fine-tuning.

    Returns:
      uint8 [T, height, width, C].
    """
    return np.ascontiguousarray(_resize(_cut(frames, box), size, resample))


def lay_on_canvas(
    frames: np.ndarray, boxes: Sequence[Box], canvas: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Brings what the boxes show of some frames to a fixed size, for the device to cut from.

    That part lies at the top left of the canvas as it is. Where a side of it is too long for the
    canvas, this side is shrunk as `crop_resize` would shrink it.

    Args:
      frames: uint8 [T, H, W, C], C 3 or 1.
      boxes: of the crops; parts outside the frame are black.
      canvas: (height, width).

    Returns:
      uint8 [T, height, width, C]; float32 [R, 4]: top, left, height, width of the boxes on it.
    """
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    right = max(box.left + box.width for box in boxes)
    shown = Box(left, top, right - left, bottom - top)
    height, width = min(shown.height, canvas[0]), min(shown.width, canvas[1])
    laid = np.zeros((len(frames), *canvas, frames.shape[-1]), np.uint8)
    laid[:, :height, :width] = _resize(_cut(frames, shown), (height, width), "antialias")
    places = np.array([(b.top - top, b.left - left, b.height, b.width) for b in boxes], np.float32)
    zoom = height / shown.height, width / shown.width
    return laid, places * np.array([*zoom, *zoom], np.float32)


def _resize(frames: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    if frames.shape[1:3] == tuple(size):
        return frames
    if resample == "bilinear":
        return _resize_bilinear(frames, size)
    out = np.empty((len(frames), *size, frames.shape[-1]), np.uint8)
    for i, frame in enumerate(frames):
        picture = _picture(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        out[i] = np.asarray(picture).reshape(out[i].shape)
    return out


def _resize_bilinear(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Between the two nearest rows, then the two nearest columns; in float32, frame by frame so
    that it stays in the cache."""
    channels = frames.shape[-1]
    above, below, down = _taps(frames.shape[1], size[0])
    left, right, along = _taps(frames.shape[2], size[1])
    # A row is gathered number by number: several times as fast as pixel by pixel.
    left, right = ((x[:, None] * channels + np.arange(channels)).ravel() for x in (left, right))
    along, down = np.repeat(along, channels), down[:, None]
    out = np.empty((len(frames), *size, channels), np.uint8)
    for i, frame in enumerate(frames):
        rows = frame.reshape(len(frame), -1)
        rows = _between(rows[above].astype(np.float32), rows[below].astype(np.float32), down)
        pixels = _between(rows.take(left, axis=1), rows.take(right, axis=1), along)
        pixels += 0.5
        out[i] = pixels.reshape(out[i].shape)  # cuts off what is behind the point
    return out


def _taps(pixels: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of a resized line: the two nearest pixels and the share of the second."""
    place = np.clip((np.arange(size) + 0.5) * (pixels / size) - 0.5, 0, pixels - 1)
    first = np.floor(place).astype(np.int64)
    second = np.minimum(first + 1, pixels - 1)
    return first, second, (place - first).astype(np.float32)


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """first + (second - first) * share, in the memory of both."""
    second -= first
    second *= share
    first += second
    return first


def to_grey(frames: np.ndarray) -> np.ndarray:
    """Luma of RGB frames, by the weights of ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.

    Args:
      frames: uint8 [T, H, W, 3].

    Returns:
      uint8 [T, H, W, 1].
    """
    return np.stack([np.asarray(_picture(frame).convert("L")) for frame in frames])[..., None]


def _picture(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def _cut(frames: np.ndarray, box: Box) -> np.ndarray:
    height, width = frames.shape[1:3]
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
    inside = frames[:, top:bottom, left:right]
    if inside.shape[1:3] == (box.height, box.width):
        return inside
    out = np.zeros((len(frames), box.height, box.width, frames.shape[-1]), np.uint8)
    out[:, top - box.top : bottom - box.top, left - box.left : right - box.left] = inside
    return out
