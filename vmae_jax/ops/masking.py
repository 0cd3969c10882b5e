"""Which tokens the encoder sees and which the decoder predicts.

Everything is computed inside the jitted step, from one key per clip, with counts that depend only
on the grid and the ratio. True means hidden from the encoder (for the decoder: left out of its
targets). Nothing here mixes clips, so a sharded batch needs no collective.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.ops.patches import Grid
from vmae_jax.ops.tokens import gather

ENCODER_MASKS = ("tube", "random", "frame", "agnostic", "block")
GUIDED_MASKS = ("attention",)  # of the encoder too, but they need to know how much patches matter
DECODER_MASKS = ("none", "running_cell", "random", "frame", "tube")


class MaskCounts(NamedTuple):
    """Static token counts of one clip."""

    visible: int  # V, seen by the encoder
    hidden: int
    targets: int  # M, predicted by the decoder


class Masks(NamedTuple):
    """Masks of a batch as index arrays, int32 in raster order.

    Attributes:
      visible_idx: [B, V] tokens for the encoder.
      target_idx: [B, M] tokens for the decoder to predict; may include visible ones.
      weight: float32 [B, M], 1 where a target was hidden from the encoder: only these carry loss.
    """

    visible_idx: jax.Array
    target_idx: jax.Array
    weight: jax.Array


def num_hidden(kind: str, *, ratio: float, grid: Grid) -> int:
    """Tokens of one clip that a mask of this kind hides; truncated as in the released code.

    Raises:
      ValueError: unknown kind, or a ratio that hides none or all of the frame (tube, attention), of
        the clip (random, agnostic, block) or of the time slots (frame).
    """
    t, h, w = grid
    units = {
        "tube": ("patches in each frame", h * w, t),
        "random": ("patches of the clip", t * h * w, 1),
        "frame": ("time slots", t, h * w),
        "agnostic": ("patches of the clip", t * h * w, 1),
        "block": ("patches of the clip", t * h * w, 1),
        "attention": ("patches in each frame", h * w, t),
    }
    if kind == "running_cell":
        return int(running_cell_maps(grid, ratio)[0].sum())
    if kind not in units:
        raise ValueError(f"unknown mask {kind!r}; choose one of {', '.join(units)}, running_cell")
    what, count, tokens = units[kind]
    # MAE-ST truncates what it keeps: 156 of 1568 at 0.9, where the others hide 1411.
    hidden = count - int(count * (1 - ratio)) if kind == "agnostic" else int(ratio * count)
    if not 0 < hidden < count:
        raise ValueError(
            f"mask ({kind!r}, {ratio}) hides {hidden} of {count} {what} on the grid {tuple(grid)}; "
            f"pick a ratio that hides between 1 and {count - 1}."
        )
    return hidden * tokens


def mask_counts(
    grid: Grid, *, encoder: tuple[str, float], decoder: tuple[str, float] = ("none", 0.0)
) -> MaskCounts:
    """Static counts for an encoder and a decoder mask, each given as (kind, ratio)."""
    _check_kind("encoder", encoder[0], ENCODER_MASKS + GUIDED_MASKS)
    _check_kind("decoder", decoder[0], DECODER_MASKS)
    total = grid[0] * grid[1] * grid[2]
    hidden = num_hidden(encoder[0], ratio=encoder[1], grid=grid)
    if decoder[0] == "none":
        targets = hidden
    else:
        targets = total - num_hidden(decoder[0], ratio=decoder[1], grid=grid)
    return MaskCounts(total - hidden, hidden, targets)


def tube_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Hides the same spatial patches in every time slot of one clip.

    Args:
      key: typed PRNG key of this clip.
      grid: tokens along (time, height, width), e.g. (8, 14, 14); static.
      ratio: share of the patches hidden in each slot, rounded down; static.

    Returns:
      bool [t*h*w], True = hidden; every clip hides the same count.

    Source: VideoMAE (arXiv:2203.12602), sec. 3.3; rounding as in the released code.
    """
    t, h, w = grid
    hidden = num_hidden("tube", ratio=ratio, grid=grid) // t
    return jnp.tile(random_subset(key, h * w, hidden), t)


def random_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Hides a random share of all patches of one clip: bool [t*h*w], True = hidden."""
    t, h, w = grid
    return random_subset(key, t * h * w, num_hidden("random", ratio=ratio, grid=grid))


def frame_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Hides whole time slots of one clip: bool [t*h*w], True = hidden.

    Source: VideoMAE (arXiv:2203.12602), table 1b (0.875 keeps one slot of 8); never released.
    """
    t, h, w = grid
    slots = random_subset(key, t, num_hidden("frame", ratio=ratio, grid=grid) // (h * w))
    return jnp.repeat(slots, h * w)


def agnostic_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Hides a random share of all patches of one clip: bool [t*h*w], True = hidden.

    It differs from `random_mask` in rounding alone: int(t*h*w * (1 - ratio)) patches are kept.

    Source: MAE-ST (arXiv:2205.09113), sec. 3, "spacetime-agnostic"; rounding as released.
    """
    t, h, w = grid
    return random_subset(key, t * h * w, num_hidden("agnostic", ratio=ratio, grid=grid))


def block_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Hides one contiguous box in space-time: bool [t*h*w], True = hidden.

    The box grows from a uniformly drawn centre, each side by the same share of the clip's, and is
    cut off at the borders; its last face is filled in raster order up to the exact count.

    Source: MAE-ST (arXiv:2205.09113), fig. 3 and table 2a, "block-wise", 0.75. The paper says that
    large regions of space-time are removed, and leaves open how many, of which shape, how drawn;
    no code was released. One box of the clip's own proportions is our choice.
    """
    centre = jax.random.uniform(key, (3,))
    away = [jnp.abs((jnp.arange(n) + 0.5) / n - c) for n, c in zip(grid, centre, strict=True)]
    time, rows, columns = away
    distance = jnp.maximum(time[:, None, None], jnp.maximum(rows[:, None], columns)).reshape(-1)
    order = jnp.argsort(distance, stable=True)
    return jnp.argsort(order) < num_hidden("block", ratio=ratio, grid=grid)


def attention_mask(key: jax.Array, importance: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Keeps patches of every time slot by chance, those that matter more often than others.

    Args:
      key: typed PRNG key of this clip.
      importance: float32 [t, h*w], see `draw_order`.
      grid: tokens along (time, height, width); static.
      ratio: share of the patches hidden in each slot, rounded down; static.

    Returns:
      bool [t*h*w], True = hidden; every slot hides the same count, and slots differ.

    Source: UMT (arXiv:2303.16058), whose engine draws a full order of the patches by the teacher's
    class-token attention and keeps its beginning.
    """
    return hidden_by_order(draw_order(key, importance), grid=grid, ratio=ratio)


def draw_order(key: jax.Array, importance: jax.Array) -> jax.Array:
    """Draws patches one after the other without replacement, in proportion to their importance.

    The order of the sums of log importance and Gumbel noise has exactly this law.

    Args:
      key: typed PRNG key.
      importance: [..., N], not negative; rows need not sum to one. Patches of importance zero come
        last, in any order.

    Returns:
      int32 [..., N], patches in the order of the draw.
    """
    # Below any sum that a positive importance can give, but finite, so that zeros are drawn too.
    weight = jnp.maximum(importance.astype(jnp.float32), jnp.finfo(jnp.float32).tiny)
    noise = jax.random.gumbel(key, importance.shape, jnp.float32)
    return jnp.argsort(-(jnp.log(weight) + noise), axis=-1).astype(jnp.int32)


def hidden_by_order(order: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """Keeps the first patches of each time slot.

    Args:
      order: int32 [..., t, h*w], patches from the first that is kept to the last.
      grid, ratio: see `attention_mask`.

    Returns:
      bool [..., t*h*w], True = hidden.
    """
    t, h, w = grid
    if order.shape[-2:] != (t, h * w):
        raise ValueError(f"expected an order {(t, h * w)} of a grid {tuple(grid)}: {order.shape}")
    kept = h * w - num_hidden("attention", ratio=ratio, grid=grid) // t
    return (jnp.argsort(order, axis=-1) >= kept).reshape(*order.shape[:-2], t * h * w)


def running_cell_maps(grid: Grid, ratio: float) -> np.ndarray:
    """The four maps of the running-cell decoder mask.

    A 2x2 cell is tiled over the frame; which of its positions are dropped moves on by one with each
    time slot. The map number sets the start.

    Args:
      grid: tokens along (time, height, width). For an odd side the tiling is cropped; the released
        code, which tiles side // 2 cells, makes maps of the wrong size there.
      ratio: share of the positions dropped; int(4 * ratio) of each cell, 1 to 3.

    Returns:
      bool [4, t*h*w], True = dropped from the decoder's targets; read-only.

    Raises:
      ValueError: the ratio drops none or all of a cell, or the four maps keep different counts
        (possible only with an odd side), which would make shapes depend on the draw.

    Source: VideoMAE V2 (arXiv:2303.16727), sec. 3.2, and its released generator; the pointer moves
    before it is read, so slot 0 of map s starts at s + 1.
    """
    maps = _running_cell_maps(tuple(grid), float(ratio))
    kept = (~maps).sum(axis=1)
    if kept.min() != kept.max():
        raise ValueError(
            f"running_cell on the grid {tuple(grid)} keeps {kept.tolist()} tokens depending on the "
            "map drawn, but shapes must not depend on chance; use even sides, or a number of time "
            "slots that is a multiple of 4."
        )
    return maps


@functools.lru_cache(maxsize=32)
def _running_cell_maps(grid: Grid, ratio: float) -> np.ndarray:
    t, h, w = grid
    dropped = int(4 * ratio)
    if not 1 <= dropped <= 3:
        raise ValueError(
            f"running_cell drops int(4 * {ratio}) = {dropped} positions of a 2x2 cell; "
            "pick a ratio of 0.25, 0.5 or 0.75."
        )
    ring = np.arange(4) < dropped
    maps = np.zeros((4, t, h, w), bool)
    for start in range(4):
        for slot in range(t):
            cell = np.roll(ring, -(start + 1 + slot)).reshape(2, 2)
            maps[start, slot] = np.tile(cell, (-(-h // 2), -(-w // 2)))[:h, :w]
    maps = maps.reshape(4, t * h * w)
    maps.setflags(write=False)
    return maps


def running_cell_mask(key: jax.Array, *, grid: Grid, ratio: float) -> jax.Array:
    """One of the four running-cell maps, drawn uniformly: bool [t*h*w], True = dropped."""
    return jnp.asarray(running_cell_maps(grid, ratio))[jax.random.randint(key, (), 0, 4)]


def split_indices(mask: jax.Array, num_true: int) -> tuple[jax.Array, jax.Array]:
    """Positions of the False and of the True entries along the last axis.

    Args:
      mask: bool [..., N] with exactly `num_true` True entries in every row (not checked).
      num_true: static.

    Returns:
      (int32 [..., N - num_true], int32 [..., num_true]), each ascending, i.e. raster order.
    """
    order = jnp.argsort(mask, axis=-1, stable=True).astype(jnp.int32)
    num_false = mask.shape[-1] - num_true
    return order[..., :num_false], order[..., num_false:]


def encoder_mask(
    keys: jax.Array,
    *,
    kind: str,
    ratio: float,
    grid: Grid,
    importance: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masks of a batch for the encoder.

    Args:
      keys: typed PRNG keys [B], one per clip.
      kind: one of `ENCODER_MASKS` or `GUIDED_MASKS`.
      importance: of each patch, float32 [B, t, h*w], for `GUIDED_MASKS`; unused by the others.

    Returns:
      (visible_idx int32 [B, V], hidden_idx int32 [B, N - V], hidden bool [B, N]).
    """
    _check_kind("encoder", kind, ENCODER_MASKS + GUIDED_MASKS)
    t, h, w = grid
    count = num_hidden(kind, ratio=ratio, grid=grid)
    if kind in GUIDED_MASKS:
        if importance is None:
            raise ValueError(f"a mask of the kind {kind!r} needs the importance of patches")
        hidden = jax.vmap(functools.partial(attention_mask, grid=grid, ratio=ratio))(
            keys, importance
        )
        # Every slot hides as many, so slots are sorted one by one.
        return *_in_slots(split_indices(hidden.reshape(-1, t, h * w), count // t)), hidden
    masks = {
        "tube": tube_mask,
        "random": random_mask,
        "frame": frame_mask,
        "agnostic": agnostic_mask,
        "block": block_mask,
    }
    hidden = jax.vmap(functools.partial(masks[kind], grid=grid, ratio=ratio))(keys)
    if kind != "tube":
        return *split_indices(hidden, count), hidden
    # A tube repeats one frame: sort h*w entries instead of t*h*w.
    first = split_indices(hidden[:, None, : h * w], count // t)
    frames = tuple(jnp.broadcast_to(idx, (len(keys), t, idx.shape[-1])) for idx in first)
    return *_in_slots(frames), hidden


def _in_slots(frames: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Indices within the frame of each time slot, (visible, hidden) [B, t, ...], as a clip's."""
    size = sum(idx.shape[-1] for idx in frames)
    slots = jnp.arange(frames[0].shape[1], dtype=jnp.int32)[:, None] * size
    visible_idx, hidden_idx = ((slots + idx).reshape(idx.shape[0], -1) for idx in frames)
    return visible_idx, hidden_idx


def decoder_mask(
    keys: jax.Array, *, kind: str, ratio: float, grid: Grid, hidden_idx: jax.Array
) -> jax.Array:
    """Tokens of a batch for the decoder to predict.

    Args:
      keys: typed PRNG keys [B], one per clip and other than those of the encoder's masks.
      kind: "none" (exactly the hidden tokens), "running_cell", "random", "frame" or "tube"; all but
        "none" are drawn independently of the encoder's mask.
      ratio: share of all tokens that is dropped; unused for "none".
      hidden_idx: int32 [B, N - V], from `encoder_mask`.

    Returns:
      target_idx int32 [B, M].

    Source: VideoMAE V2 (arXiv:2303.16727), sec. 3.2.
    """
    _check_kind("decoder", kind, DECODER_MASKS)
    if kind == "none":
        return hidden_idx
    if kind == "running_cell":
        maps = running_cell_maps(grid, ratio)
        kept = np.stack([np.flatnonzero(~one) for one in maps]).astype(np.int32)
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)
        return jnp.asarray(kept)[draw]
    masks = {"tube": tube_mask, "random": random_mask, "frame": frame_mask}
    dropped = jax.vmap(functools.partial(masks[kind], grid=grid, ratio=ratio))(keys)
    return split_indices(dropped, num_hidden(kind, ratio=ratio, grid=grid))[0]


def pretraining_masks(
    keys: jax.Array,
    *,
    grid: Grid,
    encoder: tuple[str, float],
    decoder: tuple[str, float] = ("none", 0.0),
    importance: jax.Array | None = None,
) -> Masks:
    """Both masks of a batch, drawn independently from one key per clip.

    Args:
      keys: typed PRNG keys [B].
      grid: tokens along (time, height, width); static.
      encoder, decoder: (kind, ratio), e.g. ("tube", 0.9) and ("running_cell", 0.5).
      importance: see `encoder_mask`.
    """
    encoder_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    decoder_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    visible_idx, hidden_idx, hidden = encoder_mask(
        encoder_keys, kind=encoder[0], ratio=encoder[1], grid=grid, importance=importance
    )
    target_idx = decoder_mask(
        decoder_keys, kind=decoder[0], ratio=decoder[1], grid=grid, hidden_idx=hidden_idx
    )
    weight = gather(hidden, target_idx).astype(jnp.float32)
    return Masks(visible_idx, target_idx, weight)


def random_subset(key: jax.Array, size: int, count: int) -> jax.Array:
    """bool [size] with exactly `count` True entries, every subset equally likely."""
    order = jnp.argsort(jax.random.uniform(key, (size,)))
    # Ranks by a second sort rather than a scatter: XLA keeps a batched sort local to each device.
    return jnp.argsort(order) < count


def _check_kind(which: str, kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        raise ValueError(f"unknown {which} mask {kind!r}; choose one of {', '.join(known)}")
