"""Videos stored as a folder of numbered pictures (Something-Something V2, AVA)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from vmae_jax.data import storage
from vmae_jax.data.manifest import Clip
from vmae_jax.data.video import DEFAULT_LIMITS, Chooser, Limits, VideoError

Choose = Chooser | Sequence[int]

# (regex searched in the folder's path, file name). `{}` or `{number}` is the frame's number,
# `{folder}` the folder's name. The first match counts. AVA must begin a part of the path and not be
# the beginning of a longer word: "ava", "AVA2.2" and "AVAv2.2" are meant, "java" and "avatar" not.
DEFAULT_TEMPLATES = (
    ("(^|/)(AVA|ava)v?([^A-Za-z]|$)", "{folder}_{number:06d}.jpg"),
    ("", "img_{number:05d}.jpg"),
)


def read_folder(
    clip: Clip,
    choose: Choose,
    *,
    templates: Sequence[tuple[str, str]] = DEFAULT_TEMPLATES,
    limits: Limits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Reads chosen frames of a folder; frame `i` is the picture numbered `first_frame + i`.

    Nobody knows the rate of pictures in a folder: a function that chooses gets NaN.

    Returns:
      uint8 [n, H, W, 3], RGB.

    Raises:
      VideoError: a picture is missing or damaged, or sizes differ.
    """
    chosen = chosen_frames(choose, clip.total_frames, math.nan, clip.path)

    def read(i: int) -> np.ndarray:
        name, data = picture_bytes(clip, i, templates)
        return decode_picture(data, where=clip.path, name=name, limits=limits)

    return stack_pictures(read, chosen, clip.path)


def picture_bytes(
    clip: Clip, i: int, templates: Sequence[tuple[str, str]] = DEFAULT_TEMPLATES
) -> tuple[str, bytes]:
    """Returns (name, bytes) of frame `i` of a folder.

    Raises:
      VideoError: there is no such picture.
    """
    number, folder = clip.first_frame + i, PurePosixPath(clip.path).name
    name = _template(clip.path, templates).format(number, number=number, folder=folder)
    try:
        return name, storage.read(storage.join(clip.path, name))
    except FileNotFoundError:
        raise VideoError(clip.path, f"the frame {name} does not exist") from None
    except OSError as error:
        raise VideoError(clip.path, f"the frame {name} cannot be read ({error})") from None


def chosen_frames(choose: Choose, num_frames: int, fps: float, where: str) -> np.ndarray:
    """Asks which frames are wanted; int64 [n], each within 0..num_frames-1."""
    chosen = np.asarray(choose(num_frames, fps) if callable(choose) else choose, np.int64)
    if chosen.min() < 0 or chosen.max() >= num_frames:
        raise IndexError(
            f"{where}: frames {chosen.min()} to {chosen.max()} asked for; usable are "
            f"0..{num_frames - 1}."
        )
    return chosen


def decode_picture(data: bytes, *, where: str, name: str, limits: Limits) -> np.ndarray:
    """Decodes one encoded picture: uint8 [H, W, 3], RGB.

    Args:
      data: a JPEG, PNG or WebP file.
      where: place of the video, for errors.
      name: of the picture, for errors.
      limits: `max_pixels` counts.

    Raises:
      VideoError: it is damaged or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > limits.max_pixels:
                raise VideoError(where, f"{name} exceeds {limits.max_pixels} pixels")
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VideoError(where, f"the frame {name} cannot be read ({error})") from None


def stack_pictures(read: Callable[[int], np.ndarray], chosen: np.ndarray, where: str) -> np.ndarray:
    """Reads each chosen picture once and puts them together: uint8 [n, H, W, 3]."""
    found = {i: read(i) for i in dict.fromkeys(chosen.tolist())}
    shapes = {frame.shape for frame in found.values()}
    if len(shapes) > 1:
        raise VideoError(where, f"the picture size changes: {sorted(shapes)}")
    return np.stack([found[i] for i in chosen.tolist()])


def _template(path: str, templates: Sequence[tuple[str, str]]) -> str:
    for pattern, template in templates:
        if re.search(pattern, path):
            return template
    raise VideoError(path, "no frame template matches this folder; add a rule to frame_templates")
