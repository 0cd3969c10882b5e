"""Masks of MaskFeat: blocks of cells, each many patches, until a share of the cells is hidden.

As in `masking`, everything is computed inside the jitted step from one key per clip, and True means
hidden. The number of hidden cells varies from clip to clip; shapes do not.
"""

import functools
import math

import jax
import jax.numpy as jnp

from vmae_jax.ops.masking import random_subset
from vmae_jax.ops.patches import Grid

BLOCK_MASKS = ("cube", "tube", "frame", "random")

_ASPECTS = (0.3, 1 / 0.3)  # least and most height / width of a block
# Rounds of the loop, each of which adds a block: a mask takes 5 on average and more than 20 less
# than once in a million. A fixed number, because the end of a loop that watched its clips would be
# agreed between all devices.
_MOST_BLOCKS = 20


def cells_to_hide(kind: str, *, ratio: float, cells: Grid) -> int:
    """The goal of a mask: blocks may end a few cells below it, never above.

    Args:
      kind: one of `BLOCK_MASKS`.
      ratio: share of the cells; rounded to whole cells (of one frame: tube) or slots (frame).
      cells: along (time, height, width).

    Raises:
      ValueError: unknown kind, or a ratio that hides nothing or everything.
    """
    t, h, w = cells
    units = {"cube": t * h * w, "tube": h * w, "frame": t, "random": t * h * w}
    if kind not in units:
        raise ValueError(f"unknown mask {kind!r}; choose one of {', '.join(BLOCK_MASKS)}")
    hidden, count = round(ratio * units[kind]), units[kind]
    if not 0 < hidden < count:
        raise ValueError(
            f"mask ({kind!r}, {ratio}) hides {hidden} of {count} on {t}x{h}x{w} cells; pick a "
            f"ratio that hides between 1 and {count - 1}"
        )
    return hidden * (t * h * w // count)


def cell_masks(keys: jax.Array, *, kind: str, ratio: float, cells: Grid) -> jax.Array:
    """Masks of a batch.

    Args:
      keys: typed PRNG keys [B], one per clip.
      kind: "cube", "tube", "frame" or "random".
      ratio: share of the cells to hide.
      cells: along (time, height, width); static.

    Returns:
      bool [B, t, h, w], True = hidden.
    """
    cells_to_hide(kind, ratio=ratio, cells=cells)
    draw = {"cube": cube_mask, "tube": tube_mask, "frame": frame_mask, "random": random_mask}[kind]
    return jax.vmap(functools.partial(draw, ratio=ratio, cells=cells))(keys)


def cube_mask(key: jax.Array, *, ratio: float, cells: Grid) -> jax.Array:
    """Hides blocks in space and time of one clip: bool [t, h, w].

    The area of a block in a frame is uniform between a fifth of the frame and all of it, its
    logarithmic aspect and its duration are uniform, its place is uniform among those possible. So
    the middle of the clip is hidden most.

    Source: MaskFeat (arXiv:2112.09133), section 4.3, as its released generator draws.
    """
    frame = cells[1] * cells[2]
    goal = cells_to_hide("cube", ratio=ratio, cells=cells)
    return _blocks(key, cells=cells, goal=goal, area=(frame // 5, frame), proposals=100)


def tube_mask(key: jax.Array, *, ratio: float, cells: Grid) -> jax.Array:
    """Hides blocks in space, the same in every slot: bool [t, h, w]. With one slot: of an image.

    Areas are uniform between a fifth of the goal and what is still to hide.

    Source: MaskFeat's released generator, which is BEiT's (arXiv:2106.08254).
    """
    frame = (1, *cells[1:])
    goal = cells_to_hide("tube", ratio=ratio, cells=frame)
    blocks = _blocks(key, cells=frame, goal=goal, area=(goal // 5, None), proposals=10)
    return jnp.broadcast_to(blocks, cells)


def frame_mask(key: jax.Array, *, ratio: float, cells: Grid) -> jax.Array:
    """Hides whole slots of one clip: bool [t, h, w]. Rounded, as released."""
    t, h, w = cells
    slots = cells_to_hide("frame", ratio=ratio, cells=cells) // (h * w)
    return jnp.broadcast_to(random_subset(key, t, slots)[:, None, None], cells)


def random_mask(key: jax.Array, *, ratio: float, cells: Grid) -> jax.Array:
    """Hides cells anywhere in one clip: bool [t, h, w]."""
    goal = cells_to_hide("random", ratio=ratio, cells=cells)
    return random_subset(key, math.prod(cells), goal).reshape(cells)


def to_tokens(mask: jax.Array, grid: Grid) -> jax.Array:
    """Spreads cells over the tokens that lie in them.

    Args:
      mask: [B, t, h, w].
      grid: tokens along (time, height, width), each a multiple of the mask's.

    Returns:
      [B, N], tokens in raster order.

    Raises:
      ValueError: cells do not hold whole tokens.
    """
    for axis, (tokens, cells) in enumerate(zip(grid, mask.shape[1:], strict=True), start=1):
        if tokens % cells:
            raise ValueError(f"cells {mask.shape[1:]} do not hold whole tokens of {tuple(grid)}")
        mask = jnp.repeat(mask, tokens // cells, axis=axis)
    return mask.reshape(mask.shape[0], -1)


def _blocks(
    key: jax.Array, *, cells: Grid, goal: int, area: tuple[int, int | None], proposals: int
) -> jax.Array:
    """Adds one block after the other until `goal` cells are hidden: bool [t, h, w].

    A block is the first of so many proposals that hides anything new and not more than is still to
    hide. Where none of them does, the mask stays as it is.

    Args:
      area: least and most of a block in a frame; None: what is still to hide.
    """

    def add(number: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mask, stuck = state
        rest = goal - jnp.sum(mask)
        most = rest if area[1] is None else area[1]
        spans, possible = _proposals(
            jax.random.fold_in(key, number), cells=cells, area=(area[0], most), count=proposals
        )
        in_time, in_height, in_width = spans
        # How many hidden cells each would add. Whole numbers, exact in any precision.
        free = (~mask).astype(jnp.float32)
        new = jnp.einsum("thw,wp->thp", free, in_width.astype(jnp.float32))
        new = jnp.sum(jnp.sum(new * in_height, axis=1) * in_time, axis=0)
        good = possible & (new > 0) & (new <= rest) & ~stuck
        first = good & (jnp.cumsum(good) == 1)
        t, h, w = (jnp.any(span & first, axis=-1) for span in spans)
        return mask | (t[:, None, None] & h[:, None] & w), ~jnp.any(good)

    start = jnp.zeros(cells, bool), jnp.zeros((), bool)
    return jax.lax.fori_loop(0, _MOST_BLOCKS, add, start)[0]


def _proposals(
    key: jax.Array, *, cells: Grid, area: tuple[jax.Array | int, jax.Array | int], count: int
) -> tuple[list[jax.Array], jax.Array]:
    """Draws blocks.

    Returns:
      the cells that they cover along each axis, bool [t, count], [h, count] and [w, count]; and
      which of them are smaller than a frame, bool [count].
    """
    t, h, w = cells
    draws = jax.random.uniform(key, (6, count))
    size = area[0] + draws[0] * (area[1] - area[0])
    low, high = map(math.log, _ASPECTS)
    aspect = jnp.exp(low + draws[1] * (high - low))
    lengths = (
        1.0 + jnp.floor(draws[2] * t),
        jnp.round(jnp.sqrt(size * aspect)),
        jnp.round(jnp.sqrt(size / aspect)),
    )
    spans = []
    for side, length, draw in zip(cells, lengths, draws[3:], strict=True):
        begin = jnp.floor(draw * (side - length + 1.0))
        place = jnp.arange(side)[:, None]
        spans.append((place >= begin) & (place < begin + length))
    return spans, (lengths[1] < h) & (lengths[2] < w)
