"""RandAugment: each operation against its definition, and the law by which they are drawn."""

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.randaugment import OPERATIONS, Operation, augment, draw_operations

FRAMES = np.random.default_rng(0).integers(30, 200, (3, 12, 17, 3), np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def applied(name, argument=0.0, frames=FRAMES):
    out = augment(frames, [Operation(name, argument)])
    assert out.shape == frames.shape and out.dtype == np.uint8
    return out.astype(int)


def grey(frame):
    return np.floor(frame @ LUMA + 0.5)


def clipped(values):
    return np.clip(values, 0, 255)


def blended(degenerate, factor):
    """Pillow's enhancers: from a degenerate picture to the picture itself, and beyond."""
    return clipped(degenerate + (FRAMES.astype(float) - degenerate) * factor)


def test_auto_contrast_stretches_each_channel_of_each_frame_to_the_whole_range():
    low, high = (side.astype(float) for side in (FRAMES.min((1, 2)), FRAMES.max((1, 2))))
    stretched = (FRAMES - low[:, None, None]) * (255 / (high - low))[:, None, None]
    assert np.abs(applied("auto_contrast") - stretched).max() <= 1  # Pillow rounds down


def test_equalize_gives_each_channel_of_each_frame_an_even_histogram():
    rng = np.random.default_rng(1)
    frames = (255 * rng.beta(2, 5, (2, 100, 100, 3))).astype(np.uint8)
    ranks = np.stack(
        [
            [
                np.searchsorted(np.sort(frame[..., c].ravel()), np.arange(256)) / 1e4
                for c in range(3)
            ]
            for frame in frames
        ]
    )  # share of the pixels that are darker, by level
    want = np.stack(
        [
            np.stack([255 * ranks[t, c][frames[t, ..., c]] for c in range(3)], axis=-1)
            for t in range(2)
        ]
    )
    # Pillow leaves out the pixels of the brightest level, which raises the others a little.
    assert np.abs(applied("equalize", frames=frames) - want).max() <= 3


def test_invert_posterize_and_solarize():
    np.testing.assert_array_equal(applied("invert"), 255 - FRAMES.astype(int))
    np.testing.assert_array_equal(applied("posterize", 2), FRAMES & 0b11000000)
    assert not applied("posterize", 0).any()
    level = FRAMES.astype(int)
    want = np.where(level < 100, level, 255 - level)
    np.testing.assert_array_equal(applied("solarize", 100), want)
    np.testing.assert_array_equal(applied("solarize", 256), level)
    want = np.where(level < 128, np.minimum(level + 77, 255), level)
    np.testing.assert_array_equal(applied("solarize_add", 77), want)


@pytest.mark.parametrize("factor", [0.37, 1.63])
def test_enhancers_go_away_from_a_degenerate_picture_or_towards_it(factor):
    grey_frames = np.stack([grey(frame) for frame in FRAMES])[..., None]
    means = np.floor(grey_frames.mean(axis=(1, 2, 3)) + 0.5)[:, None, None, None]
    for name, degenerate in (("color", grey_frames), ("contrast", means), ("brightness", 0.0)):
        assert np.abs(applied(name, factor) - blended(degenerate, factor)).max() <= 1
    smooth = FRAMES.astype(float)
    padded = FRAMES.astype(float)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inner = sum(
        kernel[i, j] * padded[:, i : i + 10, j : j + 15] for i in range(3) for j in range(3)
    )
    smooth[:, 1:-1, 1:-1] = np.floor(inner + 0.5)  # the border stays
    assert np.abs(applied("sharpness", factor) - blended(smooth, factor)).max() <= 1


@pytest.mark.parametrize("pixels", [3, -5])
def test_translations_move_by_a_share_of_the_side_and_fill_with_grey(pixels):
    for name, axis in (("translate_x", 2), ("translate_y", 1)):
        out = applied(name, pixels / FRAMES.shape[axis]).swapaxes(1, axis)
        source = FRAMES.swapaxes(1, axis)
        if pixels > 0:
            np.testing.assert_array_equal(out[:, :-pixels], source[:, pixels:])
            assert (out[:, -pixels:] == 128).all()
        else:
            np.testing.assert_array_equal(out[:, -pixels:], source[:, :pixels])
            assert (out[:, :-pixels] == 128).all()


def test_shears_move_each_line_by_its_distance():
    ramp = np.broadcast_to(np.arange(20, 220, 5, dtype=np.uint8)[:, None], (2, 12, 40, 3))
    line = 20 + 5 * (np.arange(40) + 0.25 * (np.arange(12)[:, None] + 0.5))  # at x + s (y + 1/2)
    inside = line < 20 + 5 * 38
    out = applied("shear_x", 0.25, ramp)
    # The kernel bends ramps by up to .2 px, and Pillow rounds down; the other way would be 30 off.
    assert np.abs(out - line[..., None])[:, inside].max() <= 2
    assert (out[:, -1, -3:] == 128).all()
    upright = applied("shear_y", 0.25, ramp.swapaxes(1, 2))
    assert np.abs(upright.swapaxes(1, 2) - line[..., None])[:, inside].max() <= 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("argument", [0.2371, -0.2371, 0.004])
def test_what_moves_along_one_axis_is_pillows_affine_transform(argument, channels):
    """Noise, full range: an overshooting kernel, ends of lines and what comes from outside."""
    frames = np.random.default_rng(2).integers(0, 256, (2, 37, 53, channels), np.uint8)
    for name, matrix in (
        ("shear_x", (1, argument, 0, 0, 1, 0)),
        ("shear_y", (1, 0, 0, argument, 1, 0)),
        ("translate_x", (1, 0, argument * 53, 0, 1, 0)),
        ("translate_y", (1, 0, 0, 0, 1, argument * 37)),
    ):
        got = applied(name, argument, frames)
        for frame, moved in zip(frames, got, strict=True):
            picture = Image.fromarray(frame.squeeze())
            fill = (128,) * channels
            want = picture.transform(
                picture.size,
                Image.Transform.AFFINE,
                matrix,
                resample=Image.Resampling.BICUBIC,
                fillcolor=fill,
            )
            off = np.abs(moved - np.asarray(want, int).reshape(moved.shape))
            assert off.max() <= 1 and (off > 0).mean() < 0.002


def test_rotation_is_counterclockwise_around_the_centre():
    frames = np.zeros((1, 41, 41, 3), np.uint8)
    frames[0, 18:23, 33:38] = 255  # to the right of the centre by 15
    out = applied("rotate", 30.0, frames)
    bright = np.argwhere(out[0, ..., 0] > 200).mean(axis=0)
    np.testing.assert_allclose(bright, [20 - 15 * 0.5, 20 + 15 * 0.75**0.5], atol=0.5)
    assert (out[0, 0, 0] == 128).all()  # the corner came from outside


def test_operations_follow_one_another_and_none_changes_nothing():
    both = augment(FRAMES, [Operation("solarize", 100), Operation("translate_x", 3 / 17)])
    first = augment(FRAMES, [Operation("solarize", 100)])
    np.testing.assert_array_equal(both, applied("translate_x", 3 / 17, first))
    assert augment(FRAMES, []) is FRAMES


def draws(count, **options):
    rng = np.random.default_rng(0)
    options = {"magnitude": 7, "count": 4, "deviation": 0.5} | options
    return [draw_operations(**options, rng=rng) for _ in range(count)]


def test_four_operations_are_drawn_evenly_and_half_of_them_applied():
    drawn = draws(6000)
    sizes = np.bincount([len(operations) for operations in drawn], minlength=5)
    np.testing.assert_allclose(sizes / 6000, np.array([1, 4, 6, 4, 1]) / 16, atol=0.03)
    names = [operation.name for operations in drawn for operation in operations]
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert len(OPERATIONS) == 15 and np.abs(counts - 800).max() < 130  # 4.5 deviations of 28
    assert any(len({o.name for o in operations}) < len(operations) for operations in drawn)


def arguments(name, drawn):
    return np.array([o.argument for operations in drawn for o in operations if o.name == name])


def test_arguments_at_a_fixed_magnitude_are_the_tables():
    drawn = draws(3000, deviation=0.0)
    for name, low, high in (
        ("rotate", -21, 21),  # 30 * .7
        ("shear_x", -0.21, 0.21),
        ("shear_y", -0.21, 0.21),
        ("translate_x", -0.315, 0.315),
        ("translate_y", -0.315, 0.315),
        ("color", 0.37, 1.63),  # 1 -+ .9 * .7
        ("contrast", 0.37, 1.63),
        ("brightness", 0.37, 1.63),
        ("sharpness", 0.37, 1.63),
    ):
        found = arguments(name, drawn)
        np.testing.assert_allclose(np.where(found < (low + high) / 2, low, high), found)
        assert abs((found > (low + high) / 2).mean() - 0.5) < 0.12
    for name, value in (("posterize", 2), ("solarize", 77), ("solarize_add", 77)):
        assert set(arguments(name, drawn).tolist()) == {
            value
        }  # 4-int(2.8), 256-int(179.2), int(77)


def test_magnitudes_are_normal_and_stay_within_0_and_10():
    found = np.abs(arguments("rotate", draws(8000))) / 3
    assert abs(found.mean() - 7) < 0.06 and abs(found.std() - 0.5) < 0.05
    wild = np.abs(arguments("rotate", draws(2000, deviation=20.0))) / 3
    assert wild.min() == 0 and wild.max() == pytest.approx(10)
    assert set(arguments("posterize", draws(2000, deviation=20.0)).tolist()) <= {0, 1, 2, 3, 4}


def test_grey_clips_take_every_operation_as_each_channel_would():
    for name in OPERATIONS:
        argument = {"posterize": 2, "solarize": 100, "solarize_add": 50}.get(name, 0.3)
        colour = applied(name, argument, FRAMES[..., :1].repeat(3, axis=-1))
        alone = applied(name, argument, FRAMES[..., :1])
        assert np.abs(alone - colour).max() <= 1
    assert (applied("color", 0.3, FRAMES[..., :1]) == FRAMES[..., :1]).all()
