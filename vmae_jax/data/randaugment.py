"""RandAugment on the host: a few random operations, the same ones for all frames of a clip.

The operations are Pillow's (shears and translations are written out here, for speed), on whole
uint8 frames before the crop, as in the released fine-tuning of VideoMAE and V2
("rand-m7-n4-mstd0.5-inc1"): 15 whose effect grows with the magnitude. What a picture decides by
itself (its histogram, its mean) differs from frame to frame; the operation and its argument do not.

Source: RandAugment (arXiv:1909.13719) as in timm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_PROB = 0.5  # with which a drawn operation is applied
MAX_MAGNITUDE = 10.0
_GREY = 128  # moved in from outside the frame
_SOLARIZE_BELOW = 128


class Operation(NamedTuple):
    """An operation by name, and its argument in the units of the table below."""

    name: str
    argument: float


def draw_operations(
    *, magnitude: float, count: int, deviation: float, rng: np.random.Generator
) -> list[Operation]:
    """Draws the operations of one clip, in the order in which they are applied.

    Each of `count` is drawn from all 15 and then left out with probability 1/2; its magnitude is
    normal around `magnitude`, between 0 and 10; what has a direction goes either way.

    Args:
      magnitude: 0 to 10.
      count: operations drawn, with replacement.
      deviation: standard deviation of the magnitudes.
      rng: of the clip.
    """
    drawn = []
    for _ in range(count):
        name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        applied, sign = rng.random() < _PROB, 1 - 2 * int(rng.integers(2))
        level = min(max(rng.normal(magnitude, deviation), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        if applied:
            drawn.append(Operation(name, _TABLE[name].argument(level, sign)))
    return drawn


def augment(frames: np.ndarray, operations: Sequence[Operation]) -> np.ndarray:
    """Applies operations to all frames of a clip.

    Args:
      frames: uint8 [T, H, W, C], C 3 or 1 (where "color" changes nothing).
      operations: of `draw_operations`.

    Returns:
      uint8 [T, H, W, C].
    """
    for name, argument in operations:
        frames = _TABLE[name].apply(frames, argument)
    return frames


class _Row(NamedTuple):
    """How a level in [0, 1] and a direction (1 or -1) become an argument, and what it does."""

    argument: Callable[[float, int], float]
    apply: Callable[[np.ndarray, float], np.ndarray]


def _each(change: Callable[[Image.Image, float], Image.Image]) -> Callable:
    """Does to all frames what is defined for a picture."""

    def apply(frames: np.ndarray, argument: float) -> np.ndarray:
        out = np.empty_like(frames)
        for i, frame in enumerate(frames):
            picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
            out[i] = np.asarray(change(picture, argument)).reshape(frame.shape)
        return out

    return apply


def _rotated(picture: Image.Image, degrees: float) -> Image.Image:
    fill = (_GREY,) * len(picture.getbands())
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterized(picture: Image.Image, bits: float) -> Image.Image:
    # Pillow's own refuses to keep no bits, which the released code does: black.
    kept = 256 - 2 ** (8 - int(bits))
    return picture.point([i & kept for i in range(256)] * len(picture.getbands()))


def _brightened_in_the_dark(picture: Image.Image, add: float) -> Image.Image:
    table = [min(255, i + int(add)) if i < _SOLARIZE_BELOW else i for i in range(256)]
    return picture.point(table * len(picture.getbands()))


def _sheared_x(frames: np.ndarray, slope: float) -> np.ndarray:
    return _slid(frames, slope * (np.arange(frames.shape[1]) + 0.5), axis=2)


def _sheared_y(frames: np.ndarray, slope: float) -> np.ndarray:
    return _slid(frames, slope * (np.arange(frames.shape[2]) + 0.5), axis=1)


def _translated_x(frames: np.ndarray, share: float) -> np.ndarray:
    return _slid(frames, np.full(frames.shape[1], share * frames.shape[2]), axis=2)


def _translated_y(frames: np.ndarray, share: float) -> np.ndarray:
    return _slid(frames, np.full(frames.shape[2], share * frames.shape[1]), axis=1)


def _slid(frames: np.ndarray, shifts: np.ndarray, *, axis: int) -> np.ndarray:
    """Takes every pixel from a place further along its line: the lines are rows or columns.

    What Pillow's affine transform with its bicubic filter comes to where it moves pixels along one
    axis only, for a fourth or fifth of the time: four neighbours on that axis, its edge repeated,
    rounded down. Within one level of it, and equal but for ties in rounding.

    Args:
      frames: uint8 [T, H, W, C].
      shifts: float64, how far along each row (axis 2) or each column (axis 1), in pixels.
      axis: along which pixels are moved.
    """
    count, height, width, channels = frames.shape
    side = frames.shape[axis]
    whole = np.floor(shifts).astype(np.int64)
    # A pixel's neighbours, -1 to 2, lie at its own place and the next three of `near`.
    shape = (count, height + 3, width) if axis == 1 else (count, height, width + 3)
    near = np.empty((*shape, channels), np.uint8)
    numbers, near_numbers = (x.reshape(*x.shape[:2], -1) for x in (frames, near))
    for lines in np.split(np.arange(len(whole)), np.flatnonzero(np.diff(whole)) + 1):
        places = np.clip(np.arange(-1, side + 2) + whole[lines[0]], 0, side - 1)
        if axis == 1:
            columns = slice(lines[0] * channels, (lines[-1] + 1) * channels)
            near_numbers[:, :, columns] = numbers[:, places, columns]
        else:
            places = (places[:, None] * channels + np.arange(channels)).ravel()
            rows = slice(lines[0], lines[-1] + 1)
            near_numbers[:, rows] = numbers[:, rows].take(places, axis=2)

    share = (shifts - whole).astype(np.float32)
    share = share[:, None] if axis == 2 else np.repeat(share, channels)
    out = np.empty_like(frames)
    for frame, around in zip(out, near_numbers, strict=True):
        around = around.astype(np.int16)
        if axis == 1:
            v0, v1, v2, v3 = (around[i : i + height] for i in range(4))
        else:
            v0, v1, v2, v3 = (around[:, i * channels :][:, : width * channels] for i in range(4))
        back, ahead = v1 - v0, v3 - v2
        level = (back + ahead) * share
        level -= 2 * back + ahead
        level *= share
        level += v2 - v0
        level *= share
        level += v1
        frame[...] = np.clip(level, 0, 255, out=level).reshape(frame.shape)
    centres = np.arange(side) + 0.5
    places = centres + shifts[:, None] if axis == 2 else centres[:, None] + shifts
    out[:, (places < 0) | (places >= side)] = _GREY
    return out


def _enhanced(kind: type) -> _Row:
    apply = _each(lambda picture, factor: kind(picture).enhance(factor))
    return _Row(lambda m, sign: 1 + 0.9 * m * sign, apply)


def _both_ways(most: float, apply: Callable[[np.ndarray, float], np.ndarray]) -> _Row:
    return _Row(lambda m, sign: most * m * sign, apply)


_TABLE = {
    "auto_contrast": _Row(lambda m, sign: 0, _each(lambda p, _: ImageOps.autocontrast(p))),
    "equalize": _Row(lambda m, sign: 0, _each(lambda p, _: ImageOps.equalize(p))),
    "invert": _Row(lambda m, sign: 0, _each(lambda p, _: ImageOps.invert(p))),
    "rotate": _both_ways(30, _each(_rotated)),  # degrees
    "posterize": _Row(lambda m, sign: 4 - int(4 * m), _each(_posterized)),  # bits kept
    "solarize": _Row(lambda m, sign: 256 - int(256 * m), _each(ImageOps.solarize)),  # from where
    "solarize_add": _Row(lambda m, sign: int(110 * m), _each(_brightened_in_the_dark)),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _both_ways(0.3, _sheared_x),  # pixels by row
    "shear_y": _both_ways(0.3, _sheared_y),
    "translate_x": _both_ways(0.45, _translated_x),  # of the width
    "translate_y": _both_ways(0.45, _translated_y),
}
OPERATIONS = tuple(_TABLE)
