"""Learned positions and class tokens, by hand-sized tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.positions import Placed
from vmae_jax.models.vit import Classifier, ViTEncoder
from vmae_jax.ops.pos_embed import sincos_positions, sincos_table
from vmae_jax.variants import StackSpec

GRID = (2, 2, 3)


def placed(positions, *, class_token=False, grid=GRID):
    return Placed(1, positions=positions, grid=grid, class_token=class_token, rngs=nnx.Rngs(0))


def test_separable_rows_are_the_slots_plus_the_place_in_the_frame():
    module = placed("separable", class_token=True)
    module.pos_embed_temporal[...] = jnp.array([[100.0], [200.0]])
    module.pos_embed_spatial[...] = jnp.arange(6.0)[:, None]
    module.pos_embed_class[...] = jnp.array([7.0])
    tokens, cls_token = jnp.zeros((1, 3, 1)), jnp.array([0.5])
    idx = jnp.array([[11, 0, 7]])  # slot 1 place 5, slot 0 place 0, slot 1 place 1
    rows = module.placed(tokens, idx, grid=GRID, class_token=cls_token)
    np.testing.assert_array_equal(rows[0, :, 0], [7.5, 205, 100, 201])


def test_a_joint_table_has_the_class_tokens_row_in_front():
    module = placed("joint", class_token=True)
    assert module.pos_embed.shape == (13, 1)
    module.pos_embed[...] = jnp.arange(13.0)[:, None]
    cls_token = jnp.full((2, 1, 1), 0.5)  # one a clip, as it comes out of an encoder
    rows = module.placed(jnp.zeros((2, 12, 1)), None, grid=GRID, class_token=cls_token)
    np.testing.assert_array_equal(rows[1, :, 0], [0.5, *range(1, 13)])
    assert placed("joint").pos_embed.shape == (12, 1)


def test_tables_fit_the_grid_that_they_were_learned_for():
    module = placed("separable")
    with pytest.raises(ValueError, match=r"learned for tokens on a grid \(2, 2, 3\).*\(2, 3, 2\)"):
        module.placed(jnp.zeros((1, 12, 1)), None, grid=(2, 3, 2))
    with pytest.raises(ValueError, match="need the grid"):
        placed("joint", grid=None)
    with pytest.raises(ValueError, match="sincos, separable"):
        placed("rotary")


def test_the_sinusoid_of_a_grid_is_interpolated_for_clips_with_another():
    interpolated = sincos_positions((4, 2, 3), 6, origin=GRID)
    for origin, expected in ((GRID, interpolated), (None, sincos_table(24, 6))):
        module = Placed(6, positions="sincos", grid=origin, class_token=False, rngs=nnx.Rngs(0))
        rows = module.placed(jnp.zeros((1, 24, 6)), None, grid=(4, 2, 3))
        np.testing.assert_array_equal(rows[0], expected)


def network(make, **changes):
    fields = {"positions": "separable", "grid": GRID, "class_token": True} | changes
    return functional(
        lambda rngs: make(StackSpec(8, 1, 2), StackOptions(), values=4, rngs=rngs, **fields)
    )


def test_the_class_token_is_not_pooled_but_takes_part():
    net = network(Classifier, num_classes=0)
    params = jax.jit(net.init)(jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (2, 12, 4))

    @jax.jit
    def both(params):
        module = net.module(params)
        tokens = module.encoder(patches, grid=GRID)
        return tokens, module.fc_norm(tokens[:, 1:].mean(axis=1)), module(patches, grid=GRID)

    tokens, expected, pooled = both(params)
    assert tokens.shape == (2, 13, 8)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    params["encoder"]["cls_token"] = jnp.linspace(-3.0, 3.0, 8)
    assert np.abs(both(params)[2] - pooled).max() > 1e-3


def test_a_mask_token_stands_in_for_patches_that_embed_to_it():
    net = network(ViTEncoder)
    params = jax.jit(net.init)(jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (1, 12, 4)).at[:, 5:].set(0.0)
    idx = jnp.arange(12)[None, ::-1]
    all_patches = net.apply(params, patches, idx, grid=GRID)
    bias = params["patch_embed"]["bias"]  # what a patch of zeros embeds to
    masked = net.apply(params, patches[:, :5], idx, grid=GRID, mask_token=bias)
    np.testing.assert_allclose(masked, all_patches, atol=1e-6)
