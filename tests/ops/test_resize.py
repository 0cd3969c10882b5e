"""Crops on the device are the host's, whatever the box, wherever the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.data.transforms import Box, crop_resize, lay_on_canvas, multi_scale_crop_box
from vmae_jax.ops.resize import resized_crops, triangle_weights
from vmae_jax.train.sharding import batch_sharding, make_mesh

CUT = jax.jit(resized_crops, static_argnames=("size", "resample"))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def on_the_host(frames, boxes, size, resample):
    cuts = [Box(int(left), int(top), int(w), int(h)) for top, left, h, w in boxes]
    return np.stack([crop_resize(frames, cut, size, resample) for cut in cuts]).astype(int)


@pytest.mark.parametrize(
    ("channels", "resample", "rounded_differently"),
    [(1, "antialias", 0.08), (3, "antialias", 0.08), (3, "bilinear", 0.25)],
)
def test_crops_are_the_hosts_within_one_level(channels, resample, rounded_differently):
    """Noise is the worst case: neighbours differ by half the range."""
    frames = noise(2, 60, 90, channels)
    boxes = np.float32(
        [
            [0, 0, 60, 90],  # both sides shrink
            [7, 11, 40, 33],  # shrinks and grows
            [20, 30, 13, 21],  # grows
            [3, 5, 32, 48],  # the target itself
            [59, 89, 1, 1],  # one pixel
        ]
    )
    got = np.asarray(CUT(frames[None], boxes, size=(32, 48), resample=resample)).astype(int)
    want = on_the_host(frames, boxes, (32, 48), resample)
    assert got.shape == want.shape == (5, 2, 32, 48, channels)
    assert np.abs(got - want).max() <= 1
    # Rounding may go the other way, no more; two taps are rounded once on the host, twice here.
    assert (got != want).mean() < rounded_differently
    np.testing.assert_array_equal(got[3:], want[3:])


def test_black_and_white_stay_what_they_are():
    frames = np.zeros((1, 1, 50, 70, 1), np.uint8)
    frames[:, :, :, 35:] = 255
    got = np.asarray(CUT(frames, np.float32([[0, 0, 50, 35], [3, 35, 41, 35]]), size=(24, 24)))
    assert not got[0].any() and (got[1] == 255).all()


def test_the_boxes_of_a_video_cut_its_own_frames():
    videos = noise(3, 1, 20, 20, 3)
    boxes = np.float32([[0, 0, 9, 9], [5, 5, 10, 12]] * 3)
    got = np.asarray(CUT(videos, boxes, size=(8, 8)))
    for clip in range(6):
        alone = CUT(videos[clip // 2][None], boxes[clip][None], size=(8, 8))
        np.testing.assert_array_equal(got[clip], alone[0])


def test_a_mirrored_crop_is_the_crop_mirrored():
    video, boxes = noise(2, 2, 20, 26, 3), np.float32([[1, 2, 17, 13]] * 4)
    plain = CUT(video, boxes, size=(8, 12))
    some = jnp.array([True, False, False, True])
    got = CUT(video, boxes, size=(8, 12), mirrored=some)
    for clip, mirrored in enumerate(some):
        want = plain[clip, :, :, ::-1] if mirrored else plain[clip]
        np.testing.assert_array_equal(got[clip], want)


def test_shrinking_by_two_averages_as_worked_by_hand():
    # Centre of output 0 is at 1.0 between pixels 0 and 1; the triangle reaches 2 px to each side:
    # distances .5, .5, 1.5 -> 3/4, 3/4, 1/4, divided by their sum.
    weights = triangle_weights(jnp.zeros(1), jnp.full(1, 8.0), pixels=8, size=4)
    np.testing.assert_allclose(weights[0, 0], [3 / 7, 3 / 7, 1 / 7, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(weights[0, 1], [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0, 0, 0], atol=1e-6)


def test_all_that_the_host_draws_comes_out_as_from_the_host():
    """Through the canvas, with boxes that reach past the frame."""
    frames, rng = noise(2, 47, 62, 3), np.random.default_rng(1)
    boxes = [multi_scale_crop_box(47, 62, size=(48, 48), rng=rng) for _ in range(12)]
    canvas, places = lay_on_canvas(frames, boxes, (56, 72))
    got = np.asarray(CUT(canvas[None], places, size=(48, 48))).astype(int)
    want = np.stack([crop_resize(frames, box, (48, 48)) for box in boxes])
    assert any(box.height > 47 for box in boxes) and np.abs(got - want).max() <= 1


def test_videos_on_eight_devices_need_no_exchange():
    if jax.device_count() < 8:
        pytest.skip("needs 8 (fake) devices")
    videos = noise(8, 1, 16, 16, 3)
    boxes = np.float32([[0, 0, 9, 9], [5, 5, 10, 11]] * 8)
    sharding = batch_sharding(make_mesh(2))
    split = jax.jit(resized_crops, static_argnames="size", out_shardings=sharding)
    arguments = jax.device_put((videos, boxes), sharding)
    text = split.lower(*arguments, size=(8, 8)).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    np.testing.assert_array_equal(split(*arguments, size=(8, 8)), CUT(videos, boxes, size=(8, 8)))
