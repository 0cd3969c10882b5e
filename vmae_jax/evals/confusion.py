"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FONT_PX = 12
_NUMBERED = 30  # classes up to which counts are written into the cells
_NAMED = 120  # ... and names beside the rows
_DARK = np.array([8, 48, 107], np.float32)
_MARGIN = 8


def confusion_picture(counts: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Draws labels as rows and predictions as columns, in the same order.

    Args:
      counts: int [K, K] by (label, prediction); a cell's shade is its share of the row.
      names: of the classes; (): their numbers.

    Returns:
      uint8 [height, width, 3].
    """
    classes = len(counts)
    names = list(names) or [str(c) for c in range(classes)]
    cell = 34 if classes <= _NUMBERED else 14 if classes <= _NAMED else max(2, 1600 // classes)
    font = ImageFont.load_default(size=_FONT_PX)
    room = max(int(font.getlength(name)) for name in names) + _MARGIN if classes <= _NAMED else 0
    left = top = room + _MARGIN + _FONT_PX
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = np.uint8(255 + (_DARK - 255) * shares[..., None])
    side = classes * cell
    canvas = Image.new("RGB", (left + side + _MARGIN, top + side + _MARGIN), "white")
    cells = Image.fromarray(shades).resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(cells, (left, top))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left, top, left + side, top + side), outline="grey")
    draw.text((2, 2), "rows: labels, columns: predictions", fill="grey", font=font)
    if room:
        for place, name in enumerate(names):
            middle = place * cell + cell // 2
            draw.text((left - 4, top + middle), name, fill="black", font=font, anchor="rm")
            _write_upwards(canvas, name, (left + middle, top - 4), font)
    if classes <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                place = left + column * cell + cell // 2, top + row * cell + cell // 2
                colour = "white" if shares[row, column] > 0.5 else "black"
                draw.text(place, str(count), fill=colour, font=font, anchor="mm")
    return np.asarray(canvas)


def _write_upwards(
    canvas: Image.Image, text: str, foot: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Writes text from bottom to top, its beginning in the middle above `foot`."""
    length = int(font.getlength(text)) + 2
    line = Image.new("RGB", (length, _FONT_PX + 4), "white")
    ImageDraw.Draw(line).text((0, 0), text, fill="black", font=font)
    turned = line.rotate(90, expand=True)
    canvas.paste(turned, (foot[0] - turned.width // 2, foot[1] - length))
