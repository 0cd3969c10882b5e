import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vmae_jax.ops.block_masks import cell_masks, cells_to_hide, to_tokens


@functools.partial(jax.jit, static_argnames=("kind", "ratio", "cells", "count"))
def draw(kind, cells, *, ratio=0.4, count=1000):
    keys = jax.random.split(jax.random.key(0), count)
    return cell_masks(keys, kind=kind, ratio=ratio, cells=cells)


# reference/maskfeat.md 3.1: 20 000 masks of the released generator. Bounds are five deviations of
# what 1 000 masks give.
def test_cubes_hide_as_the_released_generator_does():
    masks = np.asarray(draw("cube", (8, 7, 7)))
    hidden = masks.sum(axis=(1, 2, 3))
    assert hidden.max() == 157
    np.testing.assert_allclose(hidden.mean(), 155.64, atol=0.26)
    np.testing.assert_allclose(hidden.std(), 1.65, atol=0.25)
    np.testing.assert_allclose((hidden == 157).mean(), 0.356, atol=0.075)
    np.testing.assert_allclose(np.percentile(hidden, [1, 5, 25, 50]), [150, 152, 155, 156], atol=1)
    slots = masks.mean(axis=(0, 2, 3))
    released = [0.238, 0.379, 0.463, 0.506, 0.508, 0.464, 0.380, 0.238]
    np.testing.assert_allclose(slots, released, atol=0.035)
    places = masks.mean(axis=(0, 1))
    for row, column, rate in [(3, 3, 0.70), (0, 3, 0.31), (3, 6, 0.31), (0, 0, 0.115)]:
        np.testing.assert_allclose(places[row, column], rate, atol=0.05)
    np.testing.assert_allclose(masks.all(axis=1).mean(), 0.061, atol=0.015)
    np.testing.assert_allclose((~masks.any(axis=1)).mean(), 0.278, atol=0.02)


# reference/maskfeat.md 3.2 and 3.3
@pytest.mark.parametrize(
    ("cells", "goal", "mean", "exact"), [((1, 14, 14), 78, 77.56, 0.704), ((8, 7, 7), 20, 19.97, 0)]
)
def test_tubes_hide_as_the_released_generator_of_images_does(cells, goal, mean, exact):
    masks = np.asarray(draw("tube", cells))
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    hidden = masks[:, 0].sum(axis=(1, 2))
    assert hidden.max() == goal
    np.testing.assert_allclose(hidden.mean(), mean, atol=0.15)
    if exact:
        np.testing.assert_allclose((hidden == goal).mean(), exact, atol=0.075)


def test_frames_are_whole_and_rounded():
    masks = np.asarray(draw("frame", (8, 3, 5), count=200)).reshape(200, 8, 15)
    assert (masks == masks[:, :, :1]).all()
    np.testing.assert_array_equal(masks[:, :, 0].sum(axis=1), 3)  # round(8 * 0.4)
    np.testing.assert_allclose(masks[:, :, 0].mean(axis=0), 3 / 8, atol=0.15)


def test_random_cells_are_hidden_equally_often():
    masks = np.asarray(draw("random", (4, 3, 5), count=2000))
    np.testing.assert_array_equal(masks.sum(axis=(1, 2, 3)), 24)
    np.testing.assert_allclose(masks.mean(axis=0), 0.4, atol=0.06)


@pytest.mark.parametrize("kind", ["cube", "tube"])
def test_small_windows_are_filled_but_never_above_the_goal(kind):
    masks = np.asarray(draw(kind, (3, 2, 2), count=200))
    hidden = masks.sum(axis=(1, 2, 3))
    assert hidden.max() == cells_to_hide(kind, ratio=0.4, cells=(3, 2, 2))
    assert hidden.mean() > 0


def test_every_token_of_a_cell_is_hidden():
    mask = np.array([[[[True, False]], [[False, True]]]])  # 2 slots of 1 x 2 cells
    wanted = [  # 2 slots of 2 x 4 tokens
        [[1, 1, 0, 0], [1, 1, 0, 0]],
        [[0, 0, 1, 1], [0, 0, 1, 1]],
    ]
    np.testing.assert_array_equal(to_tokens(mask, (2, 2, 4)), np.reshape(wanted, (1, 16)))


def test_a_clip_depends_on_its_key_alone_and_no_device_waits_for_another():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    make = functools.partial(cell_masks, kind="cube", ratio=0.4, cells=(4, 3, 3))
    keys = jax.random.split(jax.random.key(0), 8)
    compiled = jax.jit(make, in_shardings=batch, out_shardings=batch).lower(keys).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    sharded = np.asarray(compiled(jax.device_put(keys, batch)))
    np.testing.assert_array_equal(sharded[5:7], jax.jit(make)(keys[5:7]))
    assert len(np.unique(sharded, axis=0)) > 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cells_to_hide("block", ratio=0.4, cells=(8, 7, 7)), "unknown mask 'block'"),
        (lambda: cells_to_hide("frame", ratio=0.4, cells=(1, 7, 7)), "hides 0 of 1"),
        (lambda: cells_to_hide("cube", ratio=1.0, cells=(2, 2, 2)), "between 1 and 7"),
        (lambda: to_tokens(np.zeros((1, 2, 3, 3)), (2, 8, 9)), "whole tokens"),
    ],
)
def test_what_cannot_be_masked_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
