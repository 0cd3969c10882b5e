"""Cuts videos into patches and back. Which patches are used is decided in masking and tokens."""

import jax
from einops import rearrange

Grid = tuple[int, int, int]
Tubelet = tuple[int, int, int]


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


def patchify(video: jax.Array, tubelet: Tubelet) -> jax.Array:
    """Cuts clips into patch vectors, without changing the dtype.

    Args:
      video: [B, T, H, W, C].
      tubelet: (frames, rows, columns) of one patch.

    Returns:
      [B, N, P]: tokens in raster order (t, h, w), t slowest; values ordered (frame, row, column,
      channel), channel fastest.

    Source: VideoMAE's released engine, `b (t h w) (p0 p1 p2) c`.
    """
    if video.ndim != 5:
        raise ValueError(f"expected video [B, T, H, W, C], got shape {video.shape}")
    _, frames, height, width, _ = video.shape
    t, h, w = grid_of(frames=frames, height=height, width=width, tubelet=tubelet)
    return rearrange(
        video,
        "b (t p0) (h p1) (w p2) c -> b (t h w) (p0 p1 p2 c)",
        t=t,
        h=h,
        w=w,
    )


def unpatchify(patches: jax.Array, grid: Grid, tubelet: Tubelet, channels: int) -> jax.Array:
    """Inverse of `patchify`: [B, N, P] -> [B, T, H, W, C]."""
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
