import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.config import mvit_spec
from vmae_jax.models import flops
from vmae_jax.systems.multiscale import mvit_macs
from vmae_jax.train import optim
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, make_train_step
from vmae_jax.variants import MVIT_VARIANTS, MViTSpec

BATCH = 4
# Blocks 2 and 3 are equal and scanned.
SPEC = MViTSpec(8, (1, 3), 1, strides=((1, 1, 1), (1, 2, 2)), kv_stride=(1, 2, 2))


def small_config(**fields):
    config = config_lib.finetune_defaults("mvit").unlock()
    config.model.encoder = config_lib.mvit(SPEC)
    config.model.encoder.update(remat="none", drop_path=0.2)
    config.model.update(dtype="float32", num_classes=3, head_scale=1.0, **fields)
    config.data.update(frames=4, size=(32, 32), repeats=2)
    config.train.batch_videos = BATCH // 2
    config.augment.mix_clips = 2
    config_lib.validate(config)
    return config


@functools.cache
def small_system():
    return systems.build(small_config())


def clips():
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (BATCH, 4, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 3, BATCH).astype(np.int32),
        "index": np.arange(BATCH, dtype=np.int32),
    }


def tx():
    return optim.adamw_direction(
        betas=(0.9, 0.999),
        eps=1e-4,
        weight_decay=0.05,
        decay_tables=True,
        layer_decay=0.7,
        depth=SPEC.depth,
    )


def train(mesh=None):
    """One step; on a mesh in the layout of its rules."""
    step = make_train_step(small_system(), tx(), lambda step: jnp.float32(1e-2), StepOptions())
    init, key = make_init(small_system().init, tx(), ema=False), jax.random.key(0)
    if mesh is None:
        return jax.jit(step)(jax.jit(init)(key), None, clips(), jax.random.key(1))
    with jax.set_mesh(mesh):
        layout = state_shardings(jax.eval_shape(init, key), mesh)
        state = jax.jit(init, out_shardings=layout)(key)
        batch = jax.device_put(clips(), batch_sharding(mesh))
        return jax.jit(step, out_shardings=(layout, None))(state, None, batch, jax.random.key(1))


@pytest.mark.slow
def test_sharded_step_equals_that_of_one_device():
    one, sharded = train(), train(make_mesh(2, jax.devices()[:2]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), one[0].params, sharded[0].params
    )
    np.testing.assert_allclose(one[1]["loss"], sharded[1]["loss"], rtol=1e-5)


def test_every_parameter_has_its_layout():
    shapes = jax.eval_shape(small_system().init, jax.random.key(0))
    layout = state_shardings(shapes, make_mesh(4, jax.devices()[:4]))
    block, encoder = layout["encoder"]["blocks"]["02"], layout["encoder"]
    for leaf, spec in (
        (block["attn"]["qkv"]["kernel"], (None, "fsdp", None)),
        (block["mlp"]["fc2"]["kernel"], (None, None, "fsdp")),
        (encoder["blocks"]["00"]["proj"]["kernel"], (None, "fsdp", None)),
        (encoder["patch_embed"]["kernel"], (None, None, None, None, "fsdp")),
        (block["attn"]["pool_q"]["kernel"], ()),
        (block["attn"]["rel_pos_t"], ()),
        (layout["head"]["kernel"], ("fsdp", None)),
    ):
        assert tuple(leaf.spec) == spec


def test_layers_have_their_own_width_and_grid():
    system = small_system()
    params = jax.eval_shape(system.init, jax.random.key(0))
    encoder, batch = system.encoder, {"video": clips()["video"]}
    assert encoder.depth == 4 and encoder.attention is None
    assert [encoder.width(layer) for layer in (1, 2, 3, 4)] == [16, 16, 16, 16]
    assert [encoder.grid(layer) for layer in (1, 4)] == [(2, 8, 8), (2, 4, 4)]
    for layer in (1, 4):
        tokens = jax.eval_shape(lambda p, layer=layer: encoder.tokens(p, batch, layer), params)
        assert tokens.shape == (BATCH, math.prod(encoder.grid(layer)), encoder.width(layer))
    pooled = jax.eval_shape(lambda p: encoder.pooled(p, batch), params)
    assert pooled.shape == (BATCH, 16)


@pytest.mark.parametrize(("size", "published"), [("S", 71), ("L", 377)])
def test_cost_is_the_published_one(size, published):
    config = config_lib.finetune_defaults("mvit")
    config.model.encoder = config_lib.mvit(MVIT_VARIANTS[size])
    assert round(sum(mvit_macs(config).values()) / 1e9) == published


def test_cost_of_a_block_by_hand():
    spec = MViTSpec(4, (1,), 2, strides=((1, 1, 1),), kv_stride=(1, 2, 2))
    found = flops.mvit_macs(spec, (2, 4, 4), channels=3, class_tokens=1)
    assert found["patch_embed"] == 32 * 3 * 7 * 7 * 3 * 4
    # 33 tokens, 9 keys: qkv, pooling of 32 + 2 * 8 places, scores and values, positions, proj, MLP.
    linear = 33 * (4 * 12 + 4 * 4 + 2 * 4 * 16)
    assert found["encoder"] == linear + 27 * 4 * 48 + 2 * 33 * 9 * 4 + 32 * 4 * (2 + 2 + 2)


def test_attention_that_takes_no_pooled_keys_is_refused():
    config = small_config()
    config.model.encoder.attention = "splash"
    with pytest.raises(config_lib.ConfigError, match="does not take pooled keys; choose auto"):
        systems.build(config)
    assert mvit_spec(config) == SPEC
