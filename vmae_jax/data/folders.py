"""Videos stored as a folder of numbered pictures (Something-Something V2, AVA)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from vmae_jax.data import storage
from vmae_jax.data.manifest import Clip
from vmae_jax.data.video import DEFAULT_LIMITS, Limits, VideoError

# (regex searched in the folder's path, file name). `{}` or `{number}` is the frame's number,
# `{folder}` the folder's name. The first match counts. AVA must begin a part of the path and not be
# the beginning of a longer word: "ava", "AVA2.2" and "AVAv2.2" are meant, "java" and "avatar" not.
DEFAULT_TEMPLATES = (
    ("(^|/)(AVA|ava)v?([^A-Za-z]|$)", "{folder}_{number:06d}.jpg"),
    ("", "img_{number:05d}.jpg"),
)


def read_folder(
    clip: Clip,
    choose: Callable[[int], Sequence[int]] | Sequence[int],
    *,
    templates: Sequence[tuple[str, str]] = DEFAULT_TEMPLATES,
    limits: Limits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Reads chosen frames of a folder; frame `i` is the picture numbered `first_frame + i`.

    Returns:
      uint8 [n, H, W, 3], RGB.

    Raises:
      VideoError: a picture is missing or damaged, or sizes differ.
    """
    chosen = np.asarray(choose(clip.total_frames) if callable(choose) else choose, np.int64)
    if chosen.min() < 0 or chosen.max() >= clip.total_frames:
        raise IndexError(
            f"{clip.path}: frames {chosen.min()} to {chosen.max()} asked for; usable are "
            f"0..{clip.total_frames - 1}."
        )
    template = _template(clip.path, templates)
    found = {i: _read_picture(clip, template, i, limits) for i in dict.fromkeys(chosen.tolist())}
    shapes = {frame.shape for frame in found.values()}
    if len(shapes) > 1:
        raise VideoError(clip.path, f"the picture size changes: {sorted(shapes)}")
    return np.stack([found[i] for i in chosen.tolist()])


def _template(path: str, templates: Sequence[tuple[str, str]]) -> str:
    for pattern, template in templates:
        if re.search(pattern, path):
            return template
    raise VideoError(path, "no frame template matches this folder; add a rule to frame_templates")


def _read_picture(clip: Clip, template: str, i: int, limits: Limits) -> np.ndarray:
    number, folder = clip.first_frame + i, PurePosixPath(clip.path).name
    name = template.format(number, number=number, folder=folder)
    try:
        file = io.BytesIO(storage.read(storage.join(clip.path, name)))
        with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > limits.max_pixels:
                raise VideoError(clip.path, f"{name} exceeds {limits.max_pixels} pixels")
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise VideoError(clip.path, f"the frame {name} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VideoError(clip.path, f"the frame {name} cannot be read ({error})") from None
