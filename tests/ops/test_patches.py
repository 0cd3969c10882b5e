import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.patches import grid_of, patchify, to_planes, unpatchify


def test_patchify_orders_time_slowest():
    clip = np.arange(2 * 4 * 6).reshape(1, 2, 4, 6, 1)  # T, H, W all differ, so a swap shows
    tokens = patchify(jnp.asarray(clip), (1, 2, 3))
    assert tokens.shape == (1, 8, 6)
    first_of_frame_1 = [24, 25, 26, 30, 31, 32]  # read off the array by hand
    np.testing.assert_array_equal(tokens[0, 4], first_of_frame_1)


def test_patch_values_are_ordered_frame_row_column_channel():
    clip = np.arange(2 * 2 * 2 * 3).reshape(1, 2, 2, 2, 3)
    np.testing.assert_array_equal(patchify(jnp.asarray(clip), (2, 2, 2))[0, 0], np.arange(24))


def test_planes_hold_one_channel_after_the_other():
    clip = np.arange(2 * 4 * 6 * 3).reshape(1, 2, 4, 6, 3)
    planes = patchify(jnp.asarray(clip), (2, 2, 3), order="planes")
    assert planes[0, 0, :3].tolist() == [0, 3, 6]  # red of the first row's first three columns
    np.testing.assert_array_equal(planes[0, 1, 12:24], clip[0, :, :2, 3:, 1].ravel())
    pixels = patchify(jnp.asarray(clip), (2, 2, 3))
    np.testing.assert_array_equal(planes, to_planes(pixels, channels=3))
    rows_first = to_planes(jnp.moveaxis(pixels, 2, 0), channels=3, axis=0)
    np.testing.assert_array_equal(planes, jnp.moveaxis(rows_first, 0, 2))


@pytest.mark.parametrize("tubelet", [(1, 2, 3), (2, 4, 2), (4, 1, 6)])
def test_unpatchify_undoes_patchify(tubelet):
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 6, 2), np.uint8)
    grid = grid_of(frames=4, height=8, width=6, tubelet=tubelet)
    patches = patchify(jnp.asarray(clip), tubelet)
    assert patches.dtype == jnp.uint8
    np.testing.assert_array_equal(unpatchify(patches, grid, tubelet, 2), clip)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"frames": 15}, "frames=15"), ({"height": 230}, "height=230"), ({"width": 0}, "width=0")],
)
def test_sizes_that_do_not_divide_are_named(change, word):
    sizes = {"frames": 16, "height": 224, "width": 224} | change
    with pytest.raises(ValueError, match=word):
        grid_of(**sizes, tubelet=(2, 16, 16))


def test_patches_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 8, 24\]"):
        unpatchify(jnp.zeros((1, 7, 24)), (2, 2, 2), (2, 2, 2), 3)
