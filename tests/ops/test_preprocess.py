import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.patches import patchify
from vmae_jax.ops.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    draw_flips,
    mirror,
    normalise,
    unit_range,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 8, 3), np.uint8)


@pytest.mark.parametrize("order", ["pixels", "planes"])
def test_normalising_patches_equals_patches_of_the_normalised_video(order):
    video = (PIXELS / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    expected = patchify(jnp.asarray(video, jnp.float32), (2, 3, 2), order=order)
    patches = patchify(jnp.asarray(PIXELS), (2, 3, 2), order=order)
    patches = normalise(patches, mean=IMAGENET_MEAN, std=IMAGENET_STD, order=order)
    np.testing.assert_allclose(patches, expected, atol=1e-5)


def test_a_value_worked_by_hand():
    out = normalise(jnp.array([[51, 255]], jnp.uint8), mean=(0.2, 0.5), std=(0.1, 0.25))
    np.testing.assert_allclose(out, [[0.0, 2.0]], atol=1e-6)  # (1/5 - .2) / .1, (1 - .5) / .25


def test_float_pixels_and_wrong_channels_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        unit_range(jnp.zeros(3))
    with pytest.raises(ValueError, match="one number per channel"):
        normalise(jnp.zeros((1, 4), jnp.uint8), mean=(0.1, 0.2, 0.3), std=(1, 1, 1))


def test_each_clip_flips_by_its_own_key():
    video = jnp.asarray(PIXELS[:1].repeat(64, axis=0))
    keys = jax.random.split(jax.random.key(0), 64)
    flipped = mirror(video, draw_flips(keys, 0.5))
    same = (flipped == video).all(axis=(1, 2, 3, 4))
    mirrored = (flipped == video[:, :, :, ::-1]).all(axis=(1, 2, 3, 4))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48  # 4 standard deviations
    np.testing.assert_array_equal(draw_flips(keys[5:9], 0.5), draw_flips(keys, 0.5)[5:9])


def test_flip_probabilities_at_the_ends():
    keys = jax.random.split(jax.random.key(0), 2)
    assert mirror(PIXELS, draw_flips(keys, 0.0)) is PIXELS
    np.testing.assert_array_equal(mirror(PIXELS, draw_flips(keys, 1.0)), PIXELS[:, :, :, ::-1])
    with pytest.raises(ValueError, match=r"1\.5"):
        draw_flips(keys, 1.5)
