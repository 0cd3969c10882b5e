"""Cuts videos into patches and back. Which patches are used is decided in masking and tokens.

The values of a patch come in one of two orders. "pixels": (frame, row, column, channel), channel
fastest, in which parameters are stored and released. "planes": (channel, frame, row, column), for
arithmetic: TPU registers then hold pixels side by side, not the three numbers of one.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange

Grid = tuple[int, int, int]
Tubelet = tuple[int, int, int]
Order = Literal["pixels", "planes"]

_VALUES = {"pixels": "(p0 p1 p2 c)", "planes": "(c p0 p1 p2)"}


def grid_of(*, frames: int, height: int, width: int, tubelet: Tubelet) -> Grid:
    """Number of patches along (time, height, width).

    Args:
      frames, height, width: size of a clip.
      tubelet: (frames, rows, columns) of one patch.

    Raises:
      ValueError: a size is not a positive multiple of its side of the tubelet.
    """
    sizes = {"frames": frames, "height": height, "width": width}
    for (name, size), side in zip(sizes.items(), tubelet, strict=True):
        if side < 1 or size < 1 or size % side:
            raise ValueError(
                f"{name}={size} is not a positive multiple of {side}: a clip of {frames} frames at "
                f"{height}x{width} cannot be cut into tubelets {tuple(tubelet)} "
                "(frames, rows, columns); change the clip size or the tubelet."
            )
    return frames // tubelet[0], height // tubelet[1], width // tubelet[2]


TARGET_FRAMES = ("first", "linspace", "all")


def target_frames(kind: str, *, frames: int, slots: int) -> tuple[int, ...]:
    """The frames of a clip that are predicted.

    Args:
      kind: "first": the first of each tubelet. "linspace": one of each tubelet, as evenly spread
        from the clip's first to its last as whole numbers are, rounded down. "all".
      frames: of the clip.
      slots: tubelets along time; divides the frames.

    Returns:
      their numbers, ascending; as many of each tubelet.

    Source: MAE-ST's released implementations (reference: mae_st.md, 3): PySlowFast's and its own
    repository's.
    """
    if kind == "all":
        return tuple(range(frames))
    if kind == "first":
        return tuple(range(0, frames, frames // slots))
    if kind == "linspace":
        return tuple(slot * (frames - 1) // max(slots - 1, 1) for slot in range(slots))
    raise ValueError(f"target_frames={kind!r}; choose one of {', '.join(TARGET_FRAMES)}")


def patchify(video: jax.Array, tubelet: Tubelet, *, order: Order = "pixels") -> jax.Array:
    """Cuts clips into patch vectors, without changing the dtype.

    Args:
      video: [B, T, H, W, C].
      tubelet: (frames, rows, columns) of one patch.
      order: of the values of a patch.

    Returns:
      [B, N, P]: tokens in raster order (t, h, w), t slowest.

    Source: VideoMAE's released engine, `b (t h w) (p0 p1 p2) c`.
    """
    if video.ndim != 5:
        raise ValueError(f"expected video [B, T, H, W, C], got shape {video.shape}")
    _, frames, height, width, _ = video.shape
    t, h, w = grid_of(frames=frames, height=height, width=width, tubelet=tubelet)
    return rearrange(
        video,
        f"b (t p0) (h p1) (w p2) c -> b (t h w) {_VALUES[order]}",
        t=t,
        h=h,
        w=w,
    )


def to_planes(values: jax.Array, *, channels: int, axis: int = -1) -> jax.Array:
    """Reorders one axis, whose entries belong to the values of a patch, from pixels to planes."""
    values = jnp.moveaxis(values, axis, -1)
    values = rearrange(values, "... (p c) -> ... (c p)", c=channels)
    return jnp.moveaxis(values, -1, axis)


def unpatchify(patches: jax.Array, grid: Grid, tubelet: Tubelet, channels: int) -> jax.Array:
    """Inverse of `patchify` in the order of pixels: [B, N, P] -> [B, T, H, W, C]."""
    tokens = grid[0] * grid[1] * grid[2]
    values = tubelet[0] * tubelet[1] * tubelet[2] * channels
    if patches.ndim != 3 or patches.shape[1:] != (tokens, values):
        raise ValueError(
            f"expected patches [B, {tokens}, {values}] for grid {tuple(grid)}, tubelet "
            f"{tuple(tubelet)} and {channels} channels, got {patches.shape}"
        )
    return rearrange(
        patches,
        "b (t h w) (p0 p1 p2 c) -> b (t p0) (h p1) (w p2) c",
        t=grid[0],
        h=grid[1],
        w=grid[2],
        p0=tubelet[0],
        p1=tubelet[1],
        p2=tubelet[2],
    )
