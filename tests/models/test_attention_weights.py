"""The weights that are shown are those that the network uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import Attention, StackOptions
from vmae_jax.models.vit import ViTEncoder
from vmae_jax.variants import StackSpec

GRID, VALUES = (2, 2, 3), 6


def redrawn(shapes):
    """Every parameter away from its initial value, so that all of them matter."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), "float32"), shapes)


@pytest.mark.parametrize("cosine", [False, True])
def test_weights_times_values_are_what_the_layer_computes(cosine):
    # 15 does not divide among 2 heads: the inner width is 14, as released.
    options = StackOptions(attention="xla_f32", cosine_attention=cosine)
    net = functional(lambda rngs: Attention(15, 2, options, rngs=rngs))
    params = redrawn(net.shapes)
    x = jax.random.normal(jax.random.key(0), (3, 5, 15))
    weights = net.apply(params, x, method="weights")
    assert weights.shape == (3, 2, 5, 5) and weights.dtype == jnp.float32
    values = x @ params["qkv"]["kernel"][:, 28:] + params["v_bias"]
    context = jnp.einsum("bhqk,bkhd->bqhd", weights, values.reshape(3, 5, 2, 7)).reshape(3, 5, 14)
    projected = context @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(projected, net.apply(params, x), atol=1e-4)


@functools.cache
def encoder(**options):
    spec = StackSpec(16, 3, 2)
    return functional(
        lambda rngs: ViTEncoder(spec, StackOptions(**options), values=VALUES, rngs=rngs)
    )


@pytest.mark.parametrize(("layer", "scan"), [(1, True), (3, True), (3, False)])
def test_a_layer_sees_what_the_layer_before_gives(layer, scan):
    net = encoder(scan=scan)
    params = redrawn(net.shapes)
    patches = jax.random.normal(jax.random.key(1), (2, 12, VALUES))
    attention = functools.partial(net.apply, grid=GRID, layer=layer, method="attention")
    shown = jax.jit(attention)(params, patches)
    module = net.module(params)
    before = module._embed(patches, None, GRID)  # what enters the first
    if layer > 1:
        before = module(patches, grid=GRID, layer=layer - 1)
    graphdef, blocks = nnx.split(module.blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[layer - 1], blocks))
    np.testing.assert_allclose(shown, block.attn.weights(block.norm1(before)), atol=1e-6)
    np.testing.assert_allclose(shown.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 4])
def test_layers_count_from_one(layer):
    with pytest.raises(ValueError, match=f"layer {layer} of a stack of 3"):
        encoder().apply(
            redrawn(encoder().shapes), jnp.ones((1, 12, 6)), grid=GRID, layer=layer,
            method="attention",
        )  # fmt: skip


def test_both_kinds_of_system_show_their_attention():
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 12, 3), np.uint8)
    net = functional(
        lambda rngs: ViTEncoder(StackSpec(16, 2, 2), StackOptions(), values=96, rngs=rngs)
    )
    params, shown = redrawn(net.shapes), {}
    for defaults in (config_lib.pretrain_defaults, config_lib.finetune_defaults):
        config = defaults()
        for stack in {"encoder", "decoder"} & set(config.model):
            config.model[stack].update(width=16, depth=2, heads=2)
        config.model.update(tubelet=(2, 4, 4), dtype="float32")
        config.data.update(frames=4, size=(8, 12))
        if config.system == "classify":  # it has no norm after the last block
            config.model.num_classes = 3
            params = {name: part for name, part in params.items() if name != "norm"}
        attention = jax.jit(systems.build(config).encoder.attention, static_argnums=2)
        shown[config.system] = attention({"encoder": params}, {"video": video}, 2)
    assert shown["videomae"].shape == (2, 2, 12, 12)
    np.testing.assert_allclose(shown["videomae"], shown["classify"], atol=1e-6)
