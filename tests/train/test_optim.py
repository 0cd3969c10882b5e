import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.rules import path_string
from vmae_jax.train import optim
from vmae_jax.train.schedules import warmup_cosine
from vmae_jax.variants import StackSpec


def small_params(**options):
    spec = StackSpec(16, 3, 2)
    return functional(
        lambda rngs: MaskedAutoencoder(
            spec, spec, values=24, encoder_options=StackOptions(**options), rngs=rngs
        )
    ).shapes


def test_only_matrices_decay():
    mask = optim.weight_decay_mask(small_params(cosine_attention=True, layer_scale=0.1))
    decays = {path_string(p): v for p, v in jax.tree_util.tree_leaves_with_path(mask)}
    assert {path for path, value in decays.items() if value} == {
        "encoder/patch_embed/kernel",
        "encoder_to_decoder/kernel",
        "decoder/head/kernel",
        *(
            f"{stack}/blocks/{name}/kernel"
            for stack in ("encoder", "decoder")
            for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
        ),
    }
    assert not decays["mask_token"] and not decays["encoder/blocks/attn/scale"]


def test_tokens_tables_and_norms_decay_on_demand():
    params = {
        "cls_token": 0,
        "mask_token": 1,
        "encoder": {
            "pos_embed": 2,
            "pos_embed_temporal": 3,
            "norm": {"scale": 4, "bias": 5},
            "blocks": {"04": {"attn": {"rel_pos_h": 6, "k_bias": 7, "pool_q": {"kernel": 8}}}},
        },
    }

    def decaying(**what):
        mask = optim.weight_decay_mask(params, **what)
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
        return {number for number, decays in pairs if decays}

    assert decaying() == {8}
    assert decaying(tables=True) == {0, 1, 2, 3, 6, 8}
    assert decaying(scales=True) == {4, 8}
    assert decaying(tables=True, fixed=("^encoder/pos_embed$",)) == {0, 1, 3, 6, 8}


def test_a_table_without_gradient_stays_as_it_is_where_tables_decay():
    config = config_lib.mae_st_finetune_defaults()
    config.model.positions = "frozen"
    assert config.optim.decay_tables
    tx = assemble.make_run(config, config_lib.plan(config, 1000)).tx
    params = {"encoder": {"pos_embed": jnp.ones((3, 2)), "cls_token": jnp.ones(2)}}
    direction, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(direction["encoder"]["pos_embed"], 0.0)
    assert (direction["encoder"]["cls_token"] > 0).all()


def test_unknown_parameter_is_an_error_not_a_default():
    with pytest.raises(ValueError, match="no weight-decay rule matches 'encoder/gate'"):
        optim.weight_decay_mask({"encoder": {"gate": jnp.zeros(3)}})


def test_layer_decay_of_each_layer():
    params = {
        "patch_embed": {"kernel": jnp.zeros((4, 2))},
        "blocks": {"attn": {"proj": {"kernel": jnp.zeros((3, 2, 2))}}},
        "head": {"kernel": jnp.zeros((2, 5))},
    }
    scales = optim.layer_decay_scales(params, depth=3, decay=0.5)
    assert float(scales["patch_embed"]["kernel"]) == 0.5**4
    assert scales["blocks"]["attn"]["proj"]["kernel"].shape == (3, 1, 1)
    np.testing.assert_allclose(
        scales["blocks"]["attn"]["proj"]["kernel"].ravel(), [0.125, 0.25, 0.5]
    )
    assert float(scales["head"]["kernel"]) == 1.0


def test_layer_of_a_group_of_blocks_counts_from_its_first():
    # Five blocks: 0 and 1 are alike, 2 stands alone, 3 and 4 are alike.
    kernels = {
        first: {"kernel": jnp.zeros((n, 7))} for first, n in (("00", 2), ("02", 1), ("03", 2))
    }
    scales = optim.layer_decay_scales({"encoder": {"blocks": kernels}}, depth=5, decay=0.5)
    found = [scales["encoder"]["blocks"][first]["kernel"].ravel() for first in kernels]
    np.testing.assert_array_equal(np.concatenate(found), 0.5 ** np.array([5, 4, 3, 2, 1]))


def test_direction_is_adamw_without_the_learning_rate():
    # One step by hand: bias-corrected Adam gives g / (|g| + eps) = sign(g); then + 0.1 * p.
    params = {"a": {"kernel": jnp.array([[2.0, -4.0]])}, "b": {"bias": jnp.array([8.0])}}
    grads = {"a": {"kernel": jnp.array([[0.5, -3.0]])}, "b": {"bias": jnp.array([-7.0])}}
    tx = optim.adamw_direction(betas=(0.9, 0.95), eps=0.0, weight_decay=0.1)
    direction, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(direction["a"]["kernel"], [[1.2, -1.4]], rtol=1e-6)
    np.testing.assert_allclose(direction["b"]["bias"], [-1.0], rtol=1e-6)


def test_clip_factor_by_hand():
    assert float(optim.clip_factor(jnp.float32(3.0), 0.0)) == 1.0
    assert float(optim.clip_factor(jnp.float32(0.01), 0.02)) == 1.0
    np.testing.assert_allclose(optim.clip_factor(jnp.float32(0.08), 0.02), 0.02 / 0.080001, 1e-6)
    grads = {"a": jnp.array([3.0, 4.0])}
    factor = optim.clip_factor(optax.tree.norm(grads), 1.0)
    np.testing.assert_allclose(factor, 0.2, rtol=1e-6)


def test_schedule_uses_the_peak_twice_and_never_reaches_the_floor():
    def rate(step):
        return float(warmup_cosine(step, peak=1.0, floor=0.2, warmup_steps=3, total_steps=7))

    # Warm-up 0, 1/2, 1; then cosine over 4 steps: 0.2 + 0.4 * (1 + cos(pi * i / 4)).
    half = 0.5**0.5
    expected = [0.0, 0.5, 1.0, 1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half]
    np.testing.assert_allclose([rate(i) for i in range(7)], expected, rtol=1e-6)


def test_schedule_whose_warmup_leads_to_the_cosine():
    def rates(shape):
        options = {"peak": 1.0, "floor": 0.2, "start": 0.1, "warmup_steps": 2, "total_steps": 6}
        return [float(warmup_cosine(step, shape=shape, **options)) for step in range(6)]

    half = 0.5**0.5
    falling = [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half]  # over the 4 steps after the warm-up
    np.testing.assert_allclose(rates("peak_once"), [0.1, 0.55, *falling], rtol=1e-6)
    # Over all 6: at step 2 it is at a third, 0.2 + 0.4 * (1 + cos(60 degrees)) = 0.8.
    falling = [0.8, 0.6, 0.4, 0.6 - 0.4 * 0.75**0.5]
    np.testing.assert_allclose(rates("cosine_throughout"), [0.1, 0.45, *falling], rtol=1e-6)


def test_schedule_without_warmup_and_with_one_step_of_it():
    common = {"peak": 1.0, "floor": 0.0, "total_steps": 4}
    assert float(warmup_cosine(0, warmup_steps=0, **common)) == 1.0
    assert float(warmup_cosine(0, warmup_steps=1, **common)) == 0.0
    assert float(warmup_cosine(1, warmup_steps=1, **common)) == 1.0


def test_layer_decay_multiplies_direction_and_weight_decay_of_each_layer():
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), small_params())
    grads = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), params)
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}
    plain = optim.adamw_direction(**options)
    layered = optim.adamw_direction(**options, layer_decay=0.5, depth=3)
    one, _ = plain.update(grads, plain.init(params), params)
    other, _ = layered.update(grads, layered.init(params), params)
    ratio = jax.tree.map(lambda a, b: a / b, other, one)
    encoder = ratio["encoder"]
    np.testing.assert_allclose(encoder["patch_embed"]["kernel"], 0.5**4, rtol=1e-6)
    kernel = encoder["blocks"]["attn"]["qkv"]["kernel"]
    for block, scale in enumerate((0.5**3, 0.5**2, 0.5)):  # decay ** (depth - block)
        np.testing.assert_allclose(kernel[block], scale, rtol=1e-6)
    np.testing.assert_allclose(encoder["norm"]["scale"], 1.0, rtol=1e-6)
