import functools

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.umt import Student
from vmae_jax.ops.masking import encoder_mask
from vmae_jax.ops.pos_embed import sincos_table
from vmae_jax.ops.tokens import gather
from vmae_jax.train.optim import weight_decay_mask
from vmae_jax.variants import StackSpec

GRID, VALUES, OUTPUT = (2, 3, 4), 6, 5
SPEC, LAYERS = StackSpec(16, 3, 2), (1, 3)


@functools.cache
def network(**fields):
    options = StackOptions(remat="none", scan=False)
    return functional(
        lambda rngs: Student(
            SPEC, options, values=VALUES, layers=LAYERS, output=OUTPUT, rngs=rngs, **fields
        )
    )


def drawn(net):
    """Parameters away from their initial values, so that all of them matter."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), net.shapes)


def visible(count=2):
    keys = jax.random.split(jax.random.key(0), count)
    visible_idx, _, _ = encoder_mask(keys, kind="random", ratio=0.7, grid=GRID)
    patches = jax.random.normal(jax.random.key(1), (count, 24, VALUES))
    return gather(patches, visible_idx), visible_idx


def test_each_layer_has_a_head_of_its_own_after_the_one_norm_and_positions_again():
    net, (patches, idx) = network(), visible()
    params = drawn(net)

    def encoded(module):
        """Layer by layer, from an encoder that is cut there."""
        embedded = module.encoder(patches, idx, grid=GRID, layer=1)
        last = module.encoder(patches, idx, grid=GRID)
        return jnp.stack([module.encoder.norm(embedded), last])

    @jax.jit
    def run(params):
        module = net.module(params)
        return net.apply(params, patches, idx, grid=GRID), encoded(module)

    said, tokens = (np.asarray(x, np.float64) for x in run(params))
    assert said.shape == (2, 2, idx.shape[1], OUTPUT)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["align"])
    placed = tokens + sincos_table(24, SPEC.width)[np.asarray(idx)]
    for layer in range(2):
        x = placed[layer] @ head["proj"]["kernel"][layer] + head["proj"]["bias"][layer]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * head["norm"]["scale"][layer] + head["norm"]["bias"][layer]
        np.testing.assert_allclose(said[layer], x, atol=2e-5)


def test_a_class_token_takes_part_but_is_not_aligned():
    net, (patches, idx) = network(class_token=True), visible()
    params = drawn(net)
    moved = jax.tree.map(jnp.copy, params)
    moved["encoder"]["cls_token"] = -params["encoder"]["cls_token"]
    run = jax.jit(lambda params: net.apply(params, patches, idx, grid=GRID))
    said, other = run(params), run(moved)
    assert said.shape == (2, 2, idx.shape[1], OUTPUT)
    assert np.abs(said - other).max() > 1e-3


def test_heads_begin_apart_and_only_their_kernels_decay():
    params = jax.jit(network().init)(jax.random.key(0))["align"]
    kernel = np.asarray(params["proj"]["kernel"])
    assert kernel.shape == (2, SPEC.width, OUTPUT)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    limit = np.sqrt(6 / (SPEC.width + OUTPUT))  # Xavier's, of one head
    assert 0.9 * limit < np.abs(kernel).max() <= limit
    assert weight_decay_mask(params) == {
        "proj": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
    }


def test_products_are_in_the_compute_dtype_and_what_comes_out_is_float32():
    options = StackOptions(remat="none", dtype="bfloat16")
    net = functional(
        lambda rngs: Student(SPEC, options, values=VALUES, layers=LAYERS, output=OUTPUT, rngs=rngs)
    )
    patches, idx = visible()
    made = jax.make_jaxpr(lambda p: net.apply(p, patches, idx, grid=GRID))(net.shapes)
    assert made.out_avals[0].dtype == jnp.float32
    products = [e for e in made.eqns if e.primitive.name == "dot_general"]
    heads = [e for e in products if e.outvars[0].aval.shape[-1] == OUTPUT]
    assert len(heads) == 1 and heads[0].invars[0].aval.dtype == jnp.bfloat16
