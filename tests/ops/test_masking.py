import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from vmae_jax.ops import masking

GRIDS = [(8, 14, 14), (8, 16, 16), (5, 8, 6), (3, 5, 7)]
DRAWS = {
    "tube": masking.tube_mask,
    "random": masking.random_mask,
    "frame": masking.frame_mask,
    "agnostic": masking.agnostic_mask,
    "block": masking.block_mask,
}


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def draw(kind, grid, ratio, count=64):
    one = functools.partial(DRAWS[kind], grid=grid, ratio=ratio)
    return np.asarray(jax.jit(jax.vmap(one))(keys_of(count)))


@pytest.mark.parametrize(
    ("grid", "ratio", "visible"),
    [  # reference/videomae.md 2, reference/videomae_v2.md 2.1
        ((8, 14, 14), 0.75, 392),
        ((8, 14, 14), 0.9, 160),
        ((8, 14, 14), 0.95, 80),
        ((8, 16, 16), 0.9, 208),
    ],
)
def test_tube_counts_are_the_released_ones(grid, ratio, visible):
    counts = masking.mask_counts(grid, encoder=("tube", ratio))
    total = grid[0] * grid[1] * grid[2]
    assert counts == (visible, total - visible, total - visible)
    np.testing.assert_array_equal((~draw("tube", grid, ratio)).sum(axis=1), visible)


@pytest.mark.parametrize(
    ("grid", "ratio", "kept"),
    [  # reference/videomae_v2.md 2.2
        ((8, 14, 14), 0.25, 1176),
        ((8, 14, 14), 0.5, 784),
        ((8, 14, 14), 0.75, 392),
        ((8, 16, 16), 0.5, 1024),
    ],
)
def test_running_cell_counts_are_the_released_ones(grid, ratio, kept):
    counts = masking.mask_counts(grid, encoder=("tube", 0.9), decoder=("running_cell", ratio))
    assert counts.targets == kept


@pytest.mark.parametrize(("kind", "grid"), list(itertools.product(DRAWS, GRIDS)))
def test_every_draw_hides_the_same_count(kind, grid):
    ratio = 0.7
    masks = draw(kind, grid, ratio)
    np.testing.assert_array_equal(
        masks.sum(axis=1), masking.num_hidden(kind, ratio=ratio, grid=grid)
    )
    assert len(np.unique(masks, axis=0)) > 2  # the key matters


def test_tubes_repeat_in_every_slot_and_frames_are_whole():
    tubes = draw("tube", (5, 4, 6), 0.5).reshape(64, 5, 24)
    assert (tubes == tubes[:, :1]).all()
    frames = draw("frame", (5, 4, 6), 0.5).reshape(64, 5, 24)
    assert (frames == frames[:, :, :1]).all()


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.5, 784), (0.75, 392), (0.9, 156), (0.95, 78)],  # reference/mae_st.md 2
)
def test_agnostic_masks_truncate_what_is_kept(ratio, kept):
    assert masking.mask_counts((8, 14, 14), encoder=("agnostic", ratio)).visible == kept


def test_blocks_are_boxes_that_reach_the_count():
    masks = draw("block", (4, 4, 6), 0.5).reshape(64, 4, 4, 6)
    for mask in masks:
        where = np.argwhere(mask)
        sides = where.max(axis=0) - where.min(axis=0) + 1
        # The box around what is hidden has at most its last face unfilled.
        assert np.prod(sides) - mask.sum() < np.prod(sides) // sides.min()


@pytest.mark.parametrize("kind", sorted(DRAWS.keys() - {"block"}))  # its middle is hidden oftener
def test_every_position_is_hidden_equally_often(kind):
    grid, ratio, count = (4, 4, 6), 0.5, 4000
    share = draw(kind, grid, ratio, count).mean(axis=0)
    np.testing.assert_allclose(share, 0.5, atol=5 * np.sqrt(0.25 / count))


def test_pairs_of_positions_are_hidden_independently_of_distance():
    masks = draw("random", (1, 2, 5), 0.5, 6000)
    together = (masks.T.astype(float) @ masks) / len(masks)
    pairs = together[~np.eye(10, dtype=bool)]
    np.testing.assert_allclose(pairs, 5 / 10 * 4 / 9, atol=5 * np.sqrt(0.17 / len(masks)))


def test_the_running_cell_moves_as_published():
    # reference/videomae_v2.md 2.2: s = 0, ratio .5 gives these cells in slots 0 to 3, then again
    maps = masking.running_cell_maps((8, 4, 4), 0.5).reshape(4, 8, 4, 4)
    cells = ["1001", "0011", "0110", "1100"]
    for slot in range(8):
        bits = "".join(str(int(b)) for b in maps[0, slot, :2, :2].ravel())
        assert bits == cells[slot % 4]
    np.testing.assert_array_equal(maps[:, :, 2:, :2], maps[:, :, :2, :2])
    np.testing.assert_array_equal(maps[1, :-1], maps[0, 1:])  # the next start is one slot ahead


def test_running_cell_maps_equal_the_golden_ones(shared):
    golden = load_file(shared / "golden/videomae_v2_masks/outputs.safetensors")
    ratios = {"r25": 0.25, "r50": 0.5, "r75": 0.75}
    compared = 0
    for name, maps in golden.items():
        if name.endswith("_all_maps"):
            _, size, ratio = name.removesuffix("_all_maps").split("_")
            grid = tuple(int(side) for side in size.split("x"))
            ours = masking.running_cell_maps(grid, ratios[ratio])
            np.testing.assert_array_equal(ours, maps.reshape(4, -1))
            compared += 1
    assert compared == 5


def test_running_cell_maps_are_equally_likely():
    maps = masking.running_cell_maps((2, 2, 2), 0.5)
    one = functools.partial(masking.running_cell_mask, grid=(2, 2, 2), ratio=0.5)
    drawn = np.asarray(jax.vmap(one)(keys_of(2000)))
    shares = [(drawn == single).all(axis=1).mean() for single in maps]
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_odd_sides_work_where_the_count_does_not_depend_on_the_draw():
    maps = masking.running_cell_maps((8, 5, 7), 0.5).reshape(4, 8, 5, 7)
    np.testing.assert_array_equal(
        maps[:, :, 4], maps[:, :, 0]
    )  # a cropped cell continues the tiling
    assert len({int(single.sum()) for single in maps}) == 1
    with pytest.raises(ValueError, match="multiple of 4"):
        masking.running_cell_maps((5, 5, 7), 0.5)


@pytest.mark.parametrize("kind", DRAWS)
def test_indices_split_every_clip_in_raster_order(kind):
    grid = (4, 4, 6)
    visible, hidden, mask = masking.encoder_mask(keys_of(8), kind=kind, ratio=0.75, grid=grid)
    assert visible.dtype == hidden.dtype == jnp.int32
    for b in range(8):
        np.testing.assert_array_equal(visible[b], np.flatnonzero(~mask[b]))
        np.testing.assert_array_equal(hidden[b], np.flatnonzero(mask[b]))


@pytest.mark.parametrize("kind", ["running_cell", "random", "frame", "tube"])
def test_decoder_targets_are_the_positions_kept(kind):
    grid, encoder = (4, 4, 6), ("tube", 0.75)
    keys = keys_of(32)
    masks = jax.jit(
        lambda keys: masking.pretraining_masks(
            keys, grid=grid, encoder=encoder, decoder=(kind, 0.5)
        )
    )(keys)
    counts = masking.mask_counts(grid, encoder=encoder, decoder=(kind, 0.5))
    assert masks.visible_idx.shape == (32, counts.visible)
    assert masks.target_idx.shape == (32, counts.targets)
    assert (np.diff(masks.target_idx, axis=1) > 0).all()
    for visible, targets, weight in zip(*(np.asarray(m) for m in masks), strict=True):
        np.testing.assert_array_equal(weight, ~np.isin(targets, visible))


def test_without_a_decoder_mask_all_hidden_tokens_are_targets():
    masks = masking.pretraining_masks(keys_of(4), grid=(4, 4, 6), encoder=("tube", 0.75))
    both = np.sort(np.concatenate([masks.visible_idx, masks.target_idx], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(96), (4, 1)))
    np.testing.assert_array_equal(masks.weight, 1.0)


def test_encoder_and_decoder_masks_are_independent():
    masks = masking.pretraining_masks(
        keys_of(2000), grid=(2, 2, 2), encoder=("random", 0.5), decoder=("running_cell", 0.5)
    )
    # Half of the kept positions are visible on average, whatever the map.
    np.testing.assert_allclose(masks.weight.mean(axis=0), 0.5, atol=0.06)


def test_a_clip_depends_on_its_key_alone():
    make = functools.partial(
        masking.pretraining_masks,
        grid=(4, 4, 4),
        encoder=("tube", 0.75),
        decoder=("running_cell", 0.5),
    )
    whole, part = make(keys_of(8)), make(keys_of(8)[5:7])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[5:7], b)


@pytest.mark.parametrize("decoder", [("running_cell", 0.5), ("random", 0.5), ("none", 0.0)])
def test_a_sharded_batch_needs_no_collective(decoder):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    make = functools.partial(
        masking.pretraining_masks, grid=(4, 4, 4), encoder=("tube", 0.75), decoder=decoder
    )
    keys = keys_of(16)
    compiled = jax.jit(make, in_shardings=batch, out_shardings=batch).lower(keys).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    for ours, plain in zip(compiled(jax.device_put(keys, batch)), make(keys), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: masking.num_hidden("tube", ratio=0.01, grid=(8, 4, 4)), "hides 0 of 16"),
        (lambda: masking.num_hidden("frame", ratio=1.0, grid=(8, 4, 4)), "between 1 and 7"),
        (lambda: masking.num_hidden("cube", ratio=0.5, grid=(8, 4, 4)), "unknown mask 'cube'"),
        (lambda: masking.running_cell_maps((8, 4, 4), 0.2), "0.25, 0.5 or 0.75"),
        (lambda: masking.mask_counts((8, 4, 4), encoder=("running_cell", 0.5)), "tube, random"),
        (
            lambda: masking.mask_counts((8, 4, 4), encoder=("tube", 0.5), decoder=("cell", 0.5)),
            "running_cell",
        ),
    ],
)
def test_bad_masks_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_attention_keeps_a_set_as_often_as_draws_without_replacement_do():
    # Two time slots of 5 patches, 2 of them kept; weights do not sum to one.
    weights = np.array([[0.4, 0.1, 0.1, 0.2, 0.05], [0.02, 0.02, 0.3, 0.02, 0.5]], np.float32)
    draws, grid = 40_000, (2, 1, 5)
    one = functools.partial(masking.attention_mask, grid=grid, ratio=0.6)
    keys = keys_of(draws)
    kept = ~np.asarray(jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, weights)).reshape(-1, 2, 5)
    np.testing.assert_array_equal(kept.sum(axis=2), 2)
    for slot in (0, 1):
        share = weights[slot] / weights[slot].sum()
        for a, b in itertools.combinations(range(5), 2):
            law = share[a] * share[b] * (1 / (1 - share[a]) + 1 / (1 - share[b]))
            found = (kept[:, slot, a] & kept[:, slot, b]).mean()
            assert abs(found - law) < 5 * np.sqrt(law * (1 - law) / draws)
    # Slots are drawn apart: how often the likeliest of both are kept together is the product.
    both = (kept[:, 0, 0] & kept[:, 1, 2]).mean()
    alone = kept[:, 0, 0].mean() * kept[:, 1, 2].mean()
    assert abs(both - alone) < 5 * np.sqrt(alone * (1 - alone) / draws)


def test_patches_without_attention_are_kept_only_where_others_are_too_few():
    weights = np.zeros((1, 6), np.float32)
    weights[0, [1, 4]] = 1e-30, 1e-3
    one = functools.partial(masking.attention_mask, grid=(1, 2, 3), ratio=0.5)
    kept = ~np.asarray(jax.vmap(one, in_axes=(0, None))(keys_of(256), weights))
    np.testing.assert_array_equal(kept.sum(axis=1), 3)
    assert kept[:, [1, 4]].all()
    assert kept[:, [0, 2, 3, 5]].any(axis=0).all()


@pytest.mark.parametrize("kind", ["attention", "tube"])
def test_indices_of_masks_that_hide_alike_in_every_slot_are_in_raster_order(kind):
    grid, clips = (3, 4, 5), 8
    importance = jax.random.uniform(jax.random.key(1), (clips, 3, 20))
    masks = masking.encoder_mask(
        keys_of(clips), kind=kind, ratio=0.8, grid=grid, importance=importance
    )
    visible_idx, hidden_idx, hidden = (np.asarray(x) for x in masks)
    assert visible_idx.shape == (clips, 12) and hidden_idx.shape == (clips, 48)
    for clip in range(clips):
        np.testing.assert_array_equal(visible_idx[clip], np.flatnonzero(~hidden[clip]))
        np.testing.assert_array_equal(hidden_idx[clip], np.flatnonzero(hidden[clip]))
    np.testing.assert_array_equal((~hidden).reshape(clips, 3, 20).sum(axis=2), 4)


def test_attention_counts_are_the_released_ones_and_need_the_attention():
    assert masking.mask_counts((8, 14, 14), encoder=("attention", 0.8)).visible == 320
    with pytest.raises(ValueError, match="importance of patches"):
        masking.encoder_mask(keys_of(1), kind="attention", ratio=0.8, grid=(8, 14, 14))
