import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops import hog as ops

hog = jax.jit(ops.hog, static_argnames=("bins", "cell", "window"))
hog_targets = jax.jit(ops.hog_targets, static_argnums=1)

ROWS, COLUMNS = np.mgrid[:16, :16].astype(np.float32)


# reference/maskfeat.md 4; the small side bins come from the reflected border.
@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (COLUMNS, {4: 1.0}),
        (-COLUMNS, {4: 1.0}),
        (ROWS, {0: 1.0}),
        (-ROWS, {0: 1.0}),
        (COLUMNS + 2 * ROWS, {0: 0.12649, 1: 0.98995, 4: 0.06325}),
        (COLUMNS - 2 * ROWS, {0: 0.12649, 4: 0.06325, 7: 0.98995}),
        (np.full((16, 16), 3.7), {}),
    ],
)
def test_ramps_fall_into_the_bins_worked_out_by_hand(picture, wanted):
    histogram = np.zeros(9)
    for k, value in wanted.items():
        histogram[k] = value
    found = np.asarray(hog(picture[..., None]))
    assert found.shape == (1, 9, 2, 2)
    np.testing.assert_allclose(found[0], np.tile(histogram[:, None, None], (1, 2, 2)), atol=5e-6)


def test_vectors_of_patches_hold_colours_bins_and_cells_in_the_released_order():
    # reference/maskfeat.md 4: ((colour * 9 + bin) * 2 + row) * 2 + column.
    noise = np.random.RandomState(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    video = noise.transpose(0, 2, 3, 1)[:, None]
    vector = np.asarray(hog_targets(video, (1, 16, 16)))
    assert vector.shape == (1, 1, 108)
    vector = vector.reshape(3, 9, 2, 2)
    first = [0.59852, 0.32013, 0.55212, 0.13444, 0.26436, 0.18176, 0.16518, 0.15, 0.25234]
    last = [0.2554, 0.00315, 0.31851, 0.29061, 0.6976, 0.3552, 0.33925, 0.14068, 0.03414]
    np.testing.assert_allclose(vector[0, :, 0, 0], first, atol=1e-5)
    np.testing.assert_allclose(vector[2, :, 1, 1], last, atol=1e-5)
    np.testing.assert_allclose(vector.sum(), 31.35899, atol=1e-4)


def test_a_patch_is_described_by_its_first_frame_in_raster_order():
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 24, 3), np.uint8)
    vectors = np.asarray(hog_targets(video, (2, 8, 8)))
    assert vectors.shape == (2, 2 * 2 * 3, 27)
    # Token 7 of clip 1: slot 1, which begins at frame 2, row 0, column 1.
    wanted = np.asarray(hog(video[1, 2]))[:, :, 0, 1]
    np.testing.assert_allclose(vectors[1, 7], wanted.reshape(27), atol=1e-6)


def by_hand(frame, bins, cell):
    """Pixel by pixel, with the angle itself, float64 [C, K, h, w]."""
    height, width, colours = frame.shape
    out = np.zeros((colours, bins, height // cell, width // cell))
    padded = np.pad(frame.astype(float), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    for y, x, c in np.ndindex(frame.shape):
        p = padded[y : y + 3, x : x + 3, c]
        gx = (p[:, 0] - p[:, 2]) @ [1, 2, 1]
        gy = (p[0] - p[2]) @ [1, 2, 1]
        k = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
        out[c, k, y // cell, x // cell] += math.hypot(gx, gy)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (5, 4), (9, 3)])
def test_equals_a_loop_over_pixels(bins, cell):
    # A few grey levels: many gradients lie on the edge of bin 0, and flat cells occur.
    frame = np.random.default_rng(1).integers(0, 4, (24, 48, 2), np.uint8)
    frame[:8, :16] = 7
    np.testing.assert_allclose(
        hog(frame, bins=bins, cell=cell), by_hand(frame, bins, cell), atol=1e-6
    )


def test_a_factor_and_an_offset_of_a_colour_change_nothing():
    # So histograms of pixels are those of normalised pixels.
    frame = np.random.default_rng(2).random((16, 16, 3))
    normalised = (frame - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(hog(normalised), hog(255 * frame), atol=1e-4)


def test_is_computed_in_float32_whatever_comes_in():
    frame = jnp.asarray(np.random.default_rng(3).integers(0, 128, (16, 16, 3)))
    wanted = hog(frame.astype(jnp.float32))
    for dtype in (jnp.uint8, jnp.bfloat16):  # both hold these numbers exactly
        found = hog(frame.astype(dtype))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hog(np.zeros((20, 16, 3))), "20x16 do not divide into cells of 8"),
        (lambda: hog(np.zeros((16, 16, 3)), window=12), "windows of 12"),
        (lambda: hog_targets(np.zeros((1, 2, 24, 24, 3)), (2, 12, 12)), "12x12 do not divide"),
        (lambda: hog_targets(np.zeros((1, 3, 16, 16, 3)), (2, 16, 16)), "frames=3"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
