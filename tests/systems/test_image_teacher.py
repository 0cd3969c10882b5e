import functools

import jax
import numpy as np
import pytest

from vmae_jax import chips
from vmae_jax import config as config_lib
from vmae_jax.convert.engine import flatten
from vmae_jax.ops.bicubic import resize_bicubic
from vmae_jax.systems.base import frozen_copy
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings

BATCH = 8


def small_config(**teacher):
    config = config_lib.umt_defaults()
    for group in ("model", "teacher"):
        config[group].encoder.update(width=16, depth=3, heads=2)
    config.model.update(dtype="float32", tubelet=(1, 4, 4))
    config.data.update(frames=4, size=(8, 12))
    config.teacher.update(tubelet=(1, 3, 3), size=(6, 9), output=5)
    config.teacher.update(teacher)
    config.align.layers = 2
    config_lib.validate(config)
    return config


@functools.cache
def made():
    frozen = image_teacher(small_config(), chips.local()).init(jax.random.key(0))
    return frozen, jax.random.normal(jax.random.key(1), (BATCH, 4, 8, 12, 3))


def look(config, frozen=None, video=None):
    frozen = made()[0] if frozen is None else frozen
    video = made()[1] if video is None else video
    return jax.jit(image_teacher(config, chips.local()).look)(frozen, video)


@functools.cache
def expected():
    return look(small_config())


def assert_close(ours, wanted):
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_each_frame_is_seen_by_itself_and_tokens_lie_in_raster_order():
    features, attention = expected()
    assert features.shape == (2, BATCH, 4 * 2 * 3, 5) and attention.shape == (BATCH * 4, 6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)
    swapped = made()[1][:, ::-1]  # frames in reverse
    back, looked = look(small_config(), video=swapped)
    back = back.reshape(2, BATCH, 4, 6, 5)[:, :, ::-1].reshape(features.shape)
    looked = looked.reshape(BATCH, 4, 6)[:, ::-1].reshape(attention.shape)
    assert_close((back, looked), expected())


def test_frames_are_resized_to_the_teachers_size():
    config = small_config()
    small = resize_bicubic(made()[1], 6, 9)
    config.data.size, config.model.tubelet = (6, 9), (1, 3, 3)
    assert_close(look(config, video=small), expected())


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_nothing(chunk):
    assert_close(look(small_config(chunk=chunk)), expected())


def test_a_sharded_teacher_says_the_same():
    mesh = make_mesh(4)
    with jax.set_mesh(mesh):
        frozen = jax.device_put(made()[0], state_shardings(made()[0], mesh))
        video = jax.device_put(made()[1], batch_sharding(mesh))
        assert not frozen["blocks"]["mlp"]["fc1"]["kernel"].sharding.is_fully_replicated
        assert_close(look(small_config(chunk=2), frozen, video), expected())


def test_half_precision_is_of_matrices_alone():
    config = small_config()
    config.model.dtype = "bfloat16"
    frozen = frozen_copy(made()[0], "bfloat16")
    dtypes = {(path.split("/")[-1], leaf.dtype.name) for path, leaf in flatten(frozen).items()}
    assert {dtype for name, dtype in dtypes if name == "kernel"} == {"bfloat16"}
    assert {dtype for name, dtype in dtypes if name != "kernel"} == {"float32"}
    features, attention = look(config, frozen)
    assert features.dtype == attention.dtype == np.float32
    cosines = (features * expected()[0]).sum(-1)
    assert cosines.min() > 0.999  # eight bits, in three blocks
    np.testing.assert_allclose(attention, expected()[1], rtol=0.05)


def test_features_may_keep_their_length():
    config = small_config()
    config.align.update(normalize="none", loss="mse")
    features, _ = look(config)
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    assert lengths.std() > 1e-3
    np.testing.assert_allclose(features / lengths, expected()[0], atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 8])
def test_chunks_that_do_not_divide_a_clip_are_refused(chunk):
    with pytest.raises(config_lib.ConfigError, match=r"teacher\.chunk=\d frames must divide the 4"):
        small_config(chunk=chunk)


def test_costs_are_counted_by_part():
    # Per patch and block: qkv and projection 4 * 16 * 16, MLP 2 * 16 * 64; scores and weighted
    # values 2 * 7 * 16. 4 frames with 6 patches of 27 numbers and a class token.
    macs = image_teacher(small_config(), chips.local()).macs
    block = 4 * 16 * 16 + 2 * 16 * 64 + 2 * 7 * 16
    assert macs == {
        "patch_embed": 4 * 6 * 27 * 16,
        "encoder": 4 * 7 * 3 * block,
        "proj": 4 * 6 * 2 * 16 * 5,
    }
