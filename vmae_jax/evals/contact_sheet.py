"""Videos in one picture: some frames of each, and what a classifier says of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_HEIGHT = 112  # of a frame, in pixels
_GAP = 4
_FONT_PX = 14
_TEXT_WIDTH = 320

# Name, frames uint8 [T, H, W, 3], (class, probability) best first.
Shown = tuple[str, np.ndarray, Sequence[tuple[str, float]]]


def contact_sheet(videos: Sequence[Shown]) -> np.ndarray:
    """Draws a row per video: its frames, its name above them, the answers beside them.

    Returns:
      uint8 [height, width, 3].
    """
    font = ImageFont.load_default(size=_FONT_PX)
    line = _FONT_PX + _GAP
    strips = [_strip(frames) for _, frames, _ in videos]
    heights = [line + max(_HEIGHT, line * len(answers)) + 2 * _GAP for _, _, answers in videos]
    left = max(strip.width for strip in strips) + 2 * _GAP
    canvas = Image.new("RGB", (left + _TEXT_WIDTH, sum(heights) + _GAP), "white")
    draw, top = ImageDraw.Draw(canvas), _GAP
    for (name, _, answers), strip, height in zip(videos, strips, heights, strict=True):
        draw.text((_GAP, top), name, fill="black", font=font)
        canvas.paste(strip, (_GAP, top + line))
        for place, (answer, share) in enumerate(answers):
            at = top + line + place * line
            bar = (left, at, left + round(share * (_TEXT_WIDTH - _GAP)), at + _FONT_PX)
            draw.rectangle(bar, fill=(198, 219, 239))
            draw.text((left + 2, at), f"{share:.1%} {answer}", fill="black", font=font)
        top += height
    return np.asarray(canvas)


def _strip(frames: np.ndarray) -> Image.Image:
    """Frames side by side, all of the sheet's height."""
    width = max(1, round(frames.shape[2] * _HEIGHT / frames.shape[1]))
    strip = Image.new("RGB", (len(frames) * (width + _GAP), _HEIGHT), "white")
    for place, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize((width, _HEIGHT)), (place * (width + _GAP), 0))
    return strip
