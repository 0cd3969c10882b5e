"""Pictures of what a masked model reconstructs: for the training log and the command line."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageDraw, ImageFont

from vmae_jax.systems.base import Params, System, clip_keys, compute_copy

_GAP = 4
_TEXT_HEIGHT = 16


def make_reconstruct(
    system: System,
) -> Callable[[Params, Params, Mapping[str, jax.Array], jax.Array], dict[str, np.ndarray]]:
    """Returns a jitted `(params, frozen, batch, key) -> {label: videos}`.

    Args:
      system: one whose predictions are pictures.

    Returns:
      a function whose videos are uint8 [B, T, H, W, C], on the host of every process. A clip is
      masked alike whenever it is drawn with the same key.

    Raises:
      ValueError: the system has nothing to draw.
    """
    if system.reconstruct is None:
        raise ValueError(f"the system {system.name!r} predicts no pictures")
    reconstruct = system.reconstruct
    labels: list[str] = []  # in the system's order: jit returns dicts sorted by key

    @jax.jit
    def run(
        params: Params, frozen: Params, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> list[jax.Array]:
        keys = clip_keys(key, 0, batch["index"])
        videos = reconstruct(compute_copy(params, system.compute_dtype), frozen, batch, keys)
        labels[:] = videos
        videos = [(video * 255.0).round().astype("uint8") for video in videos.values()]
        if jax.sharding.get_abstract_mesh().empty:
            return videos
        return jax.lax.with_sharding_constraint(videos, P())

    def on_host(
        params: Params, frozen: Params, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, np.ndarray]:
        videos = [np.asarray(video) for video in run(params, frozen, batch, key)]
        return dict(zip(labels, videos, strict=True))

    return on_host


def make_draw(
    system: System,
) -> Callable[[Params, Params, Mapping[str, jax.Array], jax.Array], np.ndarray]:
    """Returns `(params, frozen, batch, key) -> picture`, uint8 [H, W, 3]; see above."""
    reconstruct = make_reconstruct(system)
    return lambda *inputs: grid_picture(reconstruct(*inputs))


def grid_picture(videos: Mapping[str, np.ndarray], *, max_frames: int = 8) -> np.ndarray:
    """Lays videos out as one picture: a block per clip, in it a labelled row per kind of video.

    Args:
      videos: label -> uint8 [B, T, H, W, C], C of 1 or 3; drawn in the order given.
      max_frames: columns; frames are picked evenly over the clip.

    Returns:
      uint8 [height, width, 3].
    """
    num_clips, num_frames, height, width, _ = next(iter(videos.values())).shape
    shown = np.linspace(0, num_frames - 1, min(max_frames, num_frames)).round().astype(int)
    zoom = max(1, 112 // height)  # small frames are enlarged, without smoothing
    cell_w, cell_h = width * zoom + _GAP, height * zoom + _GAP
    row_h = cell_h + _TEXT_HEIGHT
    canvas = Image.new(
        "RGB", (len(shown) * cell_w + _GAP, num_clips * (len(videos) * row_h + 3 * _GAP)), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for clip in range(num_clips):
        for row, (label, video) in enumerate(videos.items()):
            top = clip * (len(videos) * row_h + 3 * _GAP) + row * row_h
            draw.text((_GAP, top + 1), label, fill="black", font=font)
            for column, frame in enumerate(shown):
                picture = Image.fromarray(as_rgb(video[clip, frame]))
                picture = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
                canvas.paste(picture, (_GAP + column * cell_w, top + _TEXT_HEIGHT))
    return np.asarray(canvas)


def side_by_side(videos: Mapping[str, np.ndarray], clip: int) -> np.ndarray:
    """One clip's videos next to each other with their labels, uint8 [T, H', W', 3], sizes even."""
    parts = [video[clip] for video in videos.values()]
    num_frames, height, width, _ = parts[0].shape
    zoom = max(1, 160 // height)
    cell_w, cell_h = width * zoom + _GAP, height * zoom
    font = ImageFont.load_default(size=12)
    size = (len(parts) * cell_w + _GAP, cell_h + 2 * _TEXT_HEIGHT + _GAP)
    size = (size[0] + size[0] % 2, size[1] + size[1] % 2)  # video codecs want even sides
    frames = []
    for t in range(num_frames):
        canvas = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(canvas)
        for column, (label, part) in enumerate(zip(videos, parts, strict=True)):
            left = _GAP + column * cell_w
            lines = _wrapped(label, cell_w - _GAP, font)
            draw.multiline_text((left, 1), lines, fill="black", font=font, spacing=1)
            picture = Image.fromarray(as_rgb(part[t]))
            picture = picture.resize((width * zoom, cell_h), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, 2 * _TEXT_HEIGHT))
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] -> [H, W, 3]: one channel is repeated, of more than three the first three."""
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame[..., :3]


def _wrapped(label: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Breaks a label once, at the last space that keeps the first line within `width`."""
    if font.getlength(label) <= width:
        return label
    words = label.split(" ")
    for cut in range(len(words) - 1, 0, -1):
        if font.getlength(" ".join(words[:cut])) <= width:
            return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])
    return label
