"""Random erasing against the released rule written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.erase import draw_erasures, erase

DRAW = jax.jit(draw_erasures, static_argnames=("prob", "size"))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def released_box(rng, height, width):
    for _ in range(100):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return top, left, top + h, left + w
    return 0, 0, 0, 0


@pytest.mark.parametrize("size", [(30, 40), (40, 12)])  # on the narrow frame many draws do not fit
def test_boxes_follow_the_released_law(size):
    count = 8000
    got = np.asarray(DRAW(keys(count), prob=1.0, size=size))
    rng = np.random.default_rng(1)
    want = np.array([released_box(rng, *size) for _ in range(count)])
    tops, lefts, bottoms, rights = got.T
    assert (tops >= 0).all() and (lefts >= 0).all()
    assert (bottoms <= size[0]).all() and (rights <= size[1]).all()
    for number in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2],
    ):
        drawn, wanted = np.sort(number(got)), np.sort(number(want))
        places = np.concatenate([drawn, wanted])
        shares = [np.searchsorted(x, places, side="right") / count for x in (drawn, wanted)]
        # 1.95 * sqrt(2 / 8000), beyond which equal laws come once in 1000 times
        assert np.abs(shares[0] - shares[1]).max() < 0.031


def test_each_clip_is_erased_by_its_own_key_with_the_probability():
    boxes = np.asarray(DRAW(keys(4000), prob=0.25, size=(30, 40)))
    erased = boxes.any(axis=1)
    assert abs(erased.mean() - 0.25) < 0.031  # four and a half standard deviations
    np.testing.assert_array_equal(boxes[::-1], DRAW(keys(4000)[::-1], prob=0.25, size=(30, 40)))


def test_the_box_is_shared_by_the_frames_and_the_noise_is_not():
    video = jnp.full((3, 4, 20, 24, 3), 7.0)
    boxes = jnp.array([[2, 3, 18, 20], [0, 0, 0, 0], [0, 4, 16, 24]])
    got = np.asarray(jax.jit(erase)(video, boxes, keys(3)))
    want = np.zeros((3, 20, 24), bool)
    want[0, 2:18, 3:20] = want[2, :16, 4:24] = True
    np.testing.assert_array_equal((got != 7.0).all(axis=(1, 4)), want)
    np.testing.assert_array_equal((got != 7.0).any(axis=(1, 4)), want)
    noise = got[0, :, 2:18, 3:20].reshape(4, -1)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1  # of 3264 values
    correlation = np.corrcoef(noise)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 0.16  # four and a half deviations of 816 ** -0.5
    assert not np.allclose(noise[0, :200], got[2, 0, :16, 4:24].ravel()[:200])


def test_no_probability_costs_nothing_and_no_such_probability_is_refused():
    video = jnp.zeros((2, 1, 4, 4, 3), jnp.bfloat16)
    assert draw_erasures(keys(2), prob=0.0, size=(4, 4)) is None
    assert erase(video, None, keys(2)) is video
    boxes = jnp.zeros((2, 4), jnp.int32)
    assert jax.eval_shape(erase, video, boxes, keys(2)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"1\.5"):
        draw_erasures(keys(2), prob=1.5, size=(4, 4))
