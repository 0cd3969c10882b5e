import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import chips, systems
from vmae_jax import config as config_lib
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.autoencoders import autoencoder
from vmae_jax.train import optim
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, make_train_step

GRID = (4, 4, 4)
REPOSITORY = {
    "init": "mae_st",
    "decoder_positions": "separable",
    "decoder_class_token": "own",
}


def small_config(**masking):
    """Clips of 8 x 16 x 16 in 64 tokens, 6 of them visible."""
    config = config_lib.mae_st_defaults().unlock()
    for stack, width in (("encoder", 16), ("decoder", 8)):
        config.model[stack].update(width=width, depth=1, heads=2)
    config.model.update(tubelet=(2, 4, 4), dtype="float32", layers="unroll")
    config.data.update(frames=8, size=(16, 16))
    config.masking.update(masking)
    config_lib.validate(config)
    return config


def clips(count=2):
    video = np.random.default_rng(0).integers(0, 256, (count, 8, 16, 16, 3), np.uint8)
    return {"video": video, "index": np.arange(count, dtype=np.int32)}


@functools.cache
def params():
    """Every parameter away from its initial value, so that all of them matter."""
    shapes = jax.eval_shape(systems.build(small_config()).init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    ("target_frames", "frames"), [("first", [0, 2, 4, 6]), ("linspace", [0, 2, 4, 7])]
)
def test_one_frame_of_each_tubelet_is_predicted_normalised_as_a_whole(target_frames, frames):
    system = systems.build(small_config(target_frames=target_frames))
    batch, keys = clips(), jax.random.split(jax.random.key(0), 2)
    drawn = jax.jit(functools.partial(system.targets, None))(batch, keys)
    assert drawn["visible_idx"].shape == (2, 6) and drawn["target_idx"].shape == (2, 58)
    np.testing.assert_array_equal(drawn["weight"], 1)
    for clip, token in ((0, 0), (1, 57)):
        t, row, column = np.unravel_index(drawn["target_idx"][clip, token], GRID)
        frame = batch["video"][clip, frames[t]] / 255
        flipped = frame[:, ::-1]  # whether the clip is mirrored was drawn too
        found = drawn["target"][clip, token]
        matches = 0
        for shown in (frame, flipped):
            patch = (shown[4 * row :, 4 * column :][:4, :4] - 0.45) / 0.225
            deviation = np.sqrt(patch.var(ddof=1) + 1e-6)
            expected = ((patch - patch.mean()) / deviation).transpose(2, 0, 1).ravel()  # planes
            matches += np.allclose(found, expected, atol=1e-4)
        assert matches == 1


def test_planes_inside_the_step_do_not_change_the_loss():
    config = small_config()
    config.data.flip = False
    system, net = systems.build(config), autoencoder(
        config, chips.local(), target_values=48, decoder_positions="joint",
        decoder_class_token="encoder", to_decoder_bias=True,
    )  # fmt: skip
    batch, keys = clips(), jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def both(params):
        drawn = system.targets(None, batch, keys)
        loss, _ = system.loss(params, drawn, keys, False)
        seen = (batch["video"] / 255 - 0.45) / 0.225
        visible = gather(patchify(seen, (2, 4, 4)), drawn["visible_idx"])
        pred = net.predict(params, visible, drawn["visible_idx"], drawn["target_idx"])
        target = gather(patchify(seen[:, ::2], (1, 4, 4)), drawn["target_idx"])
        target = target - target.mean(axis=-1, keepdims=True)
        target = target / jnp.sqrt(target.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        return loss.total / loss.weight, jnp.square(pred - target).mean()

    np.testing.assert_allclose(*both(params()), rtol=1e-5)


def test_pictures_show_the_predicted_frames_and_say_so():
    config = small_config()
    system = systems.build(config)
    batch, keys = clips(), jax.random.split(jax.random.key(0), 2)
    shown = jax.jit(system.reconstruct)(params(), None, batch, keys)
    assert set(shown) == {
        "original, predicted frames only",
        "masked",
        "raw prediction, grey = patch mean",
        "prediction with true patch statistics",
    }
    original = shown["original, predicted frames only"]
    np.testing.assert_allclose(original, batch["video"][:, ::2] / 255, atol=1e-6)
    seen = np.isclose(shown["masked"], original).all(axis=-1)
    assert 2 * 6 * 16 <= seen.sum() < 2 * 7 * 16  # 6 visible patches of 16 pixels in each clip
    borrowed = shown["prediction with true patch statistics"]
    np.testing.assert_allclose(borrowed[seen], original[seen], atol=1e-6)
    # Means of patches are the true ones, but for what is cut off at black and white.
    errors = np.abs(patchify(borrowed - original, (1, 4, 4)).mean(axis=-1))
    assert np.median(errors) < 0.05


def test_the_encoder_shows_no_class_token():
    encoder = systems.build(small_config()).encoder
    assert encoder.grid(1) == GRID and encoder.width(1) == 16

    @jax.jit
    def look(params):
        batch = clips()
        return (
            encoder.tokens(params, batch, 1),
            encoder.pooled(params, batch),
            encoder.attention(params, batch, 1),
        )

    tokens, pooled, attention = look(params())
    assert tokens.shape == (2, 64, 16)
    np.testing.assert_allclose(pooled, tokens.mean(axis=1), atol=1e-6)
    assert attention.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)


def test_mask_tokens_in_the_encoder_make_it_dense():
    sparse, dense = (systems.build(small_config(mask_tokens=where)) for where in MASK_TOKENS)
    assert dense.macs["encoder"] > 9 * sparse.macs["encoder"]
    assert dense.macs["decoder"] == sparse.macs["decoder"]
    shapes = jax.eval_shape(dense.init, jax.random.key(0))
    assert shapes["mask_token"].shape == (16,)
    batch, keys = clips(), jax.random.split(jax.random.key(0), 2)

    def loss(params):
        ratio, _ = dense.loss(params, dense.targets(None, batch, keys), keys, True)
        return ratio.total / ratio.weight

    grads = jax.jit(jax.grad(loss))(jax.jit(dense.init)(jax.random.key(0)))
    assert np.abs(grads["mask_token"]).max() > 0


MASK_TOKENS = ("decoder", "encoder")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.class_token": False}, "the encoder has no class token"),
        ({"masking.mask_tokens": "encoder", "masking.decoder": ("tube", 0.5)}, "every token once"),
        ({"masking.target_frames": "last"}, "'first', 'linspace', 'all'"),
        ({"model.positions": "frozen"}, "'sincos', 'separable', 'joint'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(change, words):
    config = config_lib.mae_st_defaults().unlock()
    config.update_from_flattened_dict(change)
    with pytest.raises(config_lib.ConfigError, match=words):
        config_lib.validate(config)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 (fake) devices")
def test_sharded_parameters_train_as_on_one_device():
    config = small_config()
    config.model.update(REPOSITORY)
    system = systems.build(config)
    # A large epsilon: a gradient that is all rounding noise must not move its weight.
    tx = optim.adamw_direction(betas=(0.9, 0.95), eps=1e-4, weight_decay=0.05, decay_tables=True)
    init = make_init(system.init, tx, ema=False)
    step = jax.jit(make_train_step(system, tx, lambda step: jnp.float32(1e-2), StepOptions()))

    def trained(mesh):
        with jax.set_mesh(mesh):
            layout = state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
            state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
            batch = jax.device_put(clips(4), batch_sharding(mesh))
            state, metrics = step(state, None, batch, jax.random.key(1))
            return jax.device_get(state.params), float(metrics["loss"])

    one, loss = trained(make_mesh(1, jax.devices()[:1]))
    many, other = trained(make_mesh(2, jax.devices()[:4]))
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), many, one)
