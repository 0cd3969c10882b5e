"""RandAugment on the host: a few random operations, the same ones for all frames of a clip.

The operations are Pillow's, on whole uint8 frames before the crop, as in the released fine-tuning
of VideoMAE and V2 ("rand-m7-n4-mstd0.5-inc1"): 15 whose effect grows with the magnitude. What a
picture decides by itself (its histogram, its mean) differs from frame to frame; the operation and
its argument do not.

Source: RandAugment (arXiv:1909.13719) as in timm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_PROB = 0.5  # with which a drawn operation is applied
MAX_MAGNITUDE = 10.0
_GREY = 128  # what is moved in from outside the frame
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
    if not operations:
        return frames
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
        for name, argument in operations:
            picture = _TABLE[name].apply(picture, argument)
        out[i] = np.asarray(picture).reshape(frame.shape)
    return out


def _moved(picture: Image.Image, matrix: Sequence[float]) -> Image.Image:
    """Each pixel (x, y) taken from (a x + b y + c, d x + e y + f)."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=_fill(picture),
    )


def _rotated(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_fill(picture))


def _fill(picture: Image.Image) -> int | tuple[int, ...]:
    return _GREY if picture.mode == "L" else (_GREY,) * 3


def _posterized(picture: Image.Image, bits: float) -> Image.Image:
    # Pillow's own refuses to keep no bits, which the released code does: black.
    kept = 256 - 2 ** (8 - int(bits))
    return picture.point([i & kept for i in range(256)] * len(picture.getbands()))


def _brightened_in_the_dark(picture: Image.Image, add: float) -> Image.Image:
    table = [min(255, i + int(add)) if i < _SOLARIZE_BELOW else i for i in range(256)]
    return picture.point(table * len(picture.getbands()))


class _Row(NamedTuple):
    """How a level in [0, 1] and a direction (1 or -1) become an argument, and what it does."""

    argument: Callable[[float, int], float]
    apply: Callable[[Image.Image, float], Image.Image]


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Row:
    return _Row(lambda m, sign: 1 + 0.9 * m * sign, lambda p, factor: kind(p).enhance(factor))


_TABLE = {
    "auto_contrast": _Row(lambda m, sign: 0, lambda p, _: ImageOps.autocontrast(p)),
    "equalize": _Row(lambda m, sign: 0, lambda p, _: ImageOps.equalize(p)),
    "invert": _Row(lambda m, sign: 0, lambda p, _: ImageOps.invert(p)),
    "rotate": _Row(lambda m, sign: 30 * m * sign, _rotated),  # degrees
    "posterize": _Row(lambda m, sign: 4 - int(4 * m), _posterized),  # bits kept
    "solarize": _Row(
        lambda m, sign: 256 - int(256 * m), lambda p, threshold: ImageOps.solarize(p, threshold)
    ),
    "solarize_add": _Row(lambda m, sign: int(110 * m), _brightened_in_the_dark),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _Row(lambda m, sign: 0.3 * m * sign, lambda p, s: _moved(p, (1, s, 0, 0, 1, 0))),
    "shear_y": _Row(lambda m, sign: 0.3 * m * sign, lambda p, s: _moved(p, (1, 0, 0, s, 1, 0))),
    "translate_x": _Row(  # share of the width
        lambda m, sign: 0.45 * m * sign, lambda p, s: _moved(p, (1, 0, s * p.width, 0, 1, 0))
    ),
    "translate_y": _Row(  # share of the height
        lambda m, sign: 0.45 * m * sign, lambda p, s: _moved(p, (1, 0, 0, 0, 1, s * p.height))
    ),
}
OPERATIONS = tuple(_TABLE)
