import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.losses import (
    alignment,
    cross_entropy,
    label_smoothing_cross_entropy,
    masked_mse,
    pixel_targets,
    soft_target_cross_entropy,
    unit_vectors,
    whole_patch_targets,
)
from vmae_jax.ops.patches import to_planes


def test_targets_are_standardised_per_channel_with_the_unbiased_variance():
    # channel 0: 0, 1 -> mean .5, unbiased variance .5; channel 1: flat
    patch = jnp.array([[[0.0, 0.25, 1.0, 0.25]]])
    deviation = np.sqrt(0.5) + 1e-6
    expected = [[[-0.5 / deviation, 0.0, 0.5 / deviation, 0.0]]]
    np.testing.assert_allclose(
        pixel_targets(patch, channels=2, normalize=True), expected, rtol=1e-6
    )


def test_targets_keep_the_order_of_their_patches():
    patches = jax.random.uniform(jax.random.key(0), (2, 3, 24))
    pixels = pixel_targets(patches, channels=3, normalize=True)
    planes = pixel_targets(
        to_planes(patches, channels=3), channels=3, normalize=True, order="planes"
    )
    np.testing.assert_allclose(planes, to_planes(pixels, channels=3), atol=1e-6)


def test_the_epsilon_joins_the_deviation_not_the_variance():
    patch = jnp.array([[[0.0, 2e-6]]])  # deviation sqrt(2) * 1e-6
    target = pixel_targets(patch, channels=1, normalize=True)
    np.testing.assert_allclose(target, [[[-1 / (np.sqrt(2) + 1), 1 / (np.sqrt(2) + 1)]]], rtol=1e-4)


def test_whole_patches_are_standardised_over_all_channels_with_epsilon_in_the_variance():
    # 0, 1, 2, 5: mean 2, unbiased variance (4 + 1 + 0 + 9) / 3
    patch = jnp.array([[[0.0, 1.0, 2.0, 5.0]]])
    expected = (np.array([-2, -1, 0, 3]) / np.sqrt(14 / 3))[None, None]
    np.testing.assert_allclose(whole_patch_targets(patch, normalize=True), expected, rtol=1e-6)
    nearly_flat = jnp.array([[[0.0, 2e-3]]])  # variance 2e-6
    expected = [[[-1e-3 / np.sqrt(3e-6), 1e-3 / np.sqrt(3e-6)]]]
    np.testing.assert_allclose(
        whole_patch_targets(nearly_flat, normalize=True), expected, rtol=1e-4
    )
    np.testing.assert_array_equal(whole_patch_targets(patch, normalize=False), patch)


def test_raw_targets_are_float32_pixels():
    patch = jnp.full((1, 1, 6), 0.5, jnp.bfloat16)
    target = pixel_targets(patch, channels=3, normalize=False)
    assert target.dtype == jnp.float32
    np.testing.assert_array_equal(target, 0.5)


def test_targets_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        pixel_targets(jnp.zeros((1, 1, 4)), channels=3, normalize=True)
    with pytest.raises(ValueError, match="one pixel"):
        pixel_targets(jnp.zeros((1, 1, 3)), channels=3, normalize=True)


def test_masked_mse_counts_only_weighted_tokens():
    pred = jnp.array([[[1.0, 3.0], [100.0, 0.0], [0.0, 2.0]]])
    total, weight = masked_mse(pred, jnp.zeros((1, 3, 2)), jnp.array([[True, False, True]]))
    assert (float(total), float(weight)) == (5.0 + 2.0, 2.0)  # means over P: 5 and 2


def test_sums_of_micro_batches_are_those_of_the_batch():
    rng = np.random.default_rng(0)
    pred, target = (jnp.asarray(rng.normal(size=(4, 5, 6))) for _ in range(2))
    weight = jnp.asarray(rng.integers(0, 2, (4, 5)))
    whole = masked_mse(pred, target, weight)
    parts = [masked_mse(pred[i:j], target[i:j], weight[i:j]) for i, j in ((0, 1), (1, 4))]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


def test_without_weights_the_loss_is_the_mean_square():
    pred = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    total, weight = masked_mse(pred, jnp.zeros_like(pred))
    np.testing.assert_allclose(total / weight, jnp.square(pred).mean(), rtol=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="pred"):
        masked_mse(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match="weight"):
        masked_mse(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)), jnp.zeros((1, 3)))


def test_classification_losses_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.array([0, 1])
    total, weight = cross_entropy(logits, labels)
    np.testing.assert_allclose(total / weight, -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)
    one_hot = jnp.eye(3)[labels]
    np.testing.assert_allclose(
        soft_target_cross_entropy(logits, one_hot), (total, weight), rtol=1e-6
    )
    smooth = 0.9 * one_hot + 0.1 / 3
    np.testing.assert_allclose(
        label_smoothing_cross_entropy(logits, labels, smoothing=0.1),
        soft_target_cross_entropy(logits, smooth),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Unit vectors (.6, .8) and (1, 0): 2 - 2 * .6; (0, 1) and (.6, -.8): 2 + 2 * .8.
        ("l2", (0.8 + 3.6) / 2),
        # (.6, .8) - (1, 0) = (-.4, .8); (0, 1) - (.6, -.8) = (-.6, 1.8).
        ("mse", (0.4 + 1.8) / 2),
        ("smooth_l1", ((0.08 + 0.32) / 2 + (0.18 + 1.3) / 2) / 2),
    ],
)
def test_alignment_is_the_mean_over_layers_and_tokens(kind, expected):
    student = jnp.array([[3.0, 4.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)  # two layers, one token
    teacher = jnp.array([[5.0, 0.0], [0.3, -0.4]]).reshape(2, 1, 1, 2)
    total, weight = alignment(unit_vectors(student), unit_vectors(teacher), kind=kind)
    assert weight == 1  # tokens, whatever the number of layers
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_alignments_that_cannot_be_are_refused_in_words():
    tokens = jnp.ones((2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"one shape \[K, B, V, D\]"):
        alignment(tokens, tokens[:, :, :2], kind="l2")
    with pytest.raises(ValueError, match="choose one of l2, mse, smooth_l1"):
        alignment(tokens, tokens, kind="cosine")
