"""Mixup and cutmix against the released rule written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.erase import draw_erasures, erase
from vmae_jax.ops.mixup import Mix, draw_mix, mix_targets, mix_videos, soft_targets
from vmae_jax.train.sharding import batch_sharding, make_mesh

DRAW = jax.jit(
    draw_mix, static_argnames=("clips", "size", "mixup", "cutmix", "prob", "switch_prob")
)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def draws(count=8000, **options):
    mix = DRAW(keys(2 * count), clips=2, size=(30, 40), **options)
    return Mix(*map(np.asarray, mix))


def released_cutmix(rng, height, width, alpha):
    """Box and own share, as timm draws them."""
    ratio = np.sqrt(1 - rng.beta(alpha, alpha))
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    y, x = rng.integers(height), rng.integers(width)
    top, bottom = max(y - cut_h // 2, 0), min(y + cut_h // 2, height)
    left, right = max(x - cut_w // 2, 0), min(x + cut_w // 2, width)
    return 1 - (bottom - top) * (right - left) / (height * width)


def quantiles_agree(drawn, wanted, bound):
    """Largest distance of two empirical distributions (Kolmogorov and Smirnov's)."""
    drawn, wanted = np.round(drawn, 5), np.round(wanted, 5)  # float32 has its own last digits
    places = np.sort(np.concatenate([drawn, wanted]))
    shares = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (drawn, wanted)]
    assert np.abs(shares[0] - shares[1]).max() < bound


# 8000 draws on each side: distances beyond 1.95 * sqrt(2 / 8000) = .031 come once in 1000 times.


@pytest.mark.parametrize("alpha", [0.05, 0.8, 5.0])
def test_the_share_of_mixup_follows_its_beta(alpha):
    mix = draws(mixup=alpha, cutmix=0.0)
    quantiles_agree(mix.share, np.random.default_rng(1).beta(alpha, alpha, 8000), 0.031)
    np.testing.assert_array_equal(mix.box, np.tile([0, 0, 30, 40], (8000, 1)))
    np.testing.assert_array_equal(mix.share, mix.opacity)


def test_the_share_of_cutmix_is_that_of_the_clipped_box():
    mix = draws(mixup=0.0, cutmix=1.0)
    rng = np.random.default_rng(1)
    wanted = np.array([released_cutmix(rng, 30, 40, 1.0) for _ in range(8000)])
    quantiles_agree(1 - mix.share, wanted, 0.031)
    top, left, bottom, right = mix.box.T
    np.testing.assert_allclose(mix.share, (bottom - top) * (right - left) / 1200, rtol=1e-6)
    assert (mix.opacity == 1).all()
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 30).all() and (right <= 40).all()


def test_kinds_alternate_by_their_probabilities():
    mix = draws(mixup=0.8, cutmix=1.0, prob=0.6, switch_prob=0.25)
    mixed = mix.opacity > 0
    cuts = mixed & (mix.opacity == 1)
    assert abs(mixed.mean() - 0.6) < 0.025  # four and a half standard deviations
    assert abs(cuts.sum() / mixed.sum() - 0.25) < 0.03
    assert (mix.share[~mixed] == 0).all()


def test_a_block_is_drawn_from_its_first_key():
    options = {"clips": 4, "size": (8, 8), "mixup": 0.8, "cutmix": 1.0}
    first = DRAW(keys(8), **options)
    others = keys(8, seed=1).at[jnp.array([0, 4])].set(keys(8)[jnp.array([0, 4])])
    second = DRAW(others, **options)
    assert first.share.shape == (2,)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_clips_and_targets_are_blended_with_the_other_end_of_the_block():
    video = np.random.default_rng(0).normal(size=(8, 2, 6, 5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 4, 4, 1, 0])
    mix = Mix(
        box=jnp.array([[0, 0, 6, 5], [1, 2, 4, 5]]),
        opacity=jnp.array([0.25, 1.0]),
        share=jnp.array([0.25, 9 / 30]),
    )
    got = np.asarray(mix_videos(jnp.asarray(video), mix))
    targets = mix_targets(soft_targets(jnp.asarray(labels), classes=5, smoothing=0.1), mix)

    want, soft = video.copy(), np.zeros((8, 5))
    for clip, partner in enumerate([3, 2, 1, 0, 7, 6, 5, 4]):
        own = [0.75, 0.7][clip // 4]
        for k in range(5):  # off = .1 / 5, on = .9 + off
            soft[clip, k] = own * (0.92 if labels[clip] == k else 0.02)
            soft[clip, k] += (1 - own) * (0.92 if labels[partner] == k else 0.02)
        if clip < 4:
            want[clip] = 0.75 * video[clip] + 0.25 * video[partner]
        else:
            want[clip, :, 1:4, 2:5] = video[partner, :, 1:4, 2:5]
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(got[4:], want[4:])  # a cut-out is not blended
    np.testing.assert_allclose(targets, soft, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)


def test_what_is_never_mixed_costs_nothing():
    options = {"clips": 2, "size": (8, 8)}
    assert draw_mix(keys(4), mixup=0.0, cutmix=0.0, **options) is None
    assert draw_mix(keys(4), mixup=0.8, cutmix=1.0, prob=0.0, **options) is None
    video = jnp.ones((4, 1, 8, 8, 3))
    assert mix_videos(video, None) is video and mix_targets(video, None) is video


def test_half_precision_stays_and_is_blended_in_float32():
    video = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 4, 1)), jnp.bfloat16)
    mix = Mix(jnp.array([[0, 0, 4, 4]]), jnp.array([0.3]), jnp.array([0.3]))
    got = mix_videos(video, mix)
    want = mix_videos(video.astype(jnp.float32), mix).astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"clips": 3}, "blocks of 3"),
        ({"clips": 4}, "batch of 6"),
        ({"mixup": -1.0}, "0 or more"),
        ({"prob": 1.5}, "prob=1.5"),
    ],
)
def test_wrong_numbers_are_refused(wrong, says):
    options = {"clips": 2, "size": (8, 8), "mixup": 0.8, "cutmix": 1.0} | wrong
    with pytest.raises(ValueError, match=says):
        draw_mix(keys(6), **options)


def test_erasing_and_mixing_within_a_device_need_no_exchange():
    if jax.device_count() < 8:
        pytest.skip("needs 8 (fake) devices")
    sharding = batch_sharding(make_mesh(2))

    def augmented(video, labels, keys):
        video = erase(video, draw_erasures(keys, prob=0.5, size=(8, 8)), keys)
        mix = draw_mix(keys, clips=2, size=(8, 8), mixup=0.8, cutmix=1.0)
        return mix_videos(video, mix), mix_targets(soft_targets(labels, classes=4), mix)

    video = np.random.default_rng(0).normal(size=(16, 1, 8, 8, 3)).astype(np.float32)
    arguments = video, np.arange(16) % 4, keys(16)
    split = jax.device_put(arguments, sharding)
    compiled = jax.jit(augmented, out_shardings=sharding).lower(*split).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, compiled(*split), jax.jit(augmented)(*arguments))
