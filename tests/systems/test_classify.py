import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.ops.pos_embed import sincos_positions
from vmae_jax.systems.base import clip_keys
from vmae_jax.train import optim
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, make_train_step

BATCH, CLASSES = 8, 5


def small_config(system="classify", **augment):
    config = config_lib.DEFAULTS[system]()
    groups = ("model", "teacher") if system == "distill" else ("model",)
    for group in groups:
        config[group].encoder.update(width=16, depth=2, heads=2, remat="none", drop_path=0.1)
        config[group].tubelet = (2, 4, 4)
    config.model.update(dtype="float32", num_classes=CLASSES, head_dropout=0.1, head_scale=1.0)
    config.data.update(frames=4, size=(16, 16), repeats=2)
    config.train.batch_videos = BATCH // 2
    config.augment.update(mix_clips=2, **augment)
    config_lib.validate(config)
    return config


@functools.cache
def small_system(name="classify"):
    return systems.build(small_config(name))


def clips(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 256, (BATCH, 4, 16, 16, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "index": np.arange(100, 100 + BATCH, dtype=np.int32),
    }


def tx():
    # eps: as in the tests of the step, or rounding noise moves a weight by the whole rate.
    return optim.adamw_direction(
        betas=(0.9, 0.999), eps=1e-4, weight_decay=0.05, layer_decay=0.7, depth=2
    )


def train(batch, *, system=None, mesh=None, frozen=None, **options):
    system = system or small_system()
    step = make_train_step(system, tx(), lambda step: jnp.float32(1e-2), StepOptions(**options))
    init, key = make_init(system.init, tx(), ema=False), jax.random.key(0)
    if mesh is None:
        return jax.jit(step)(jax.jit(init)(key), frozen, batch, jax.random.key(1))
    with jax.set_mesh(mesh):
        layout = state_shardings(jax.eval_shape(init, key), mesh)
        state = jax.jit(init, out_shardings=layout)(key)
        batch = jax.device_put(batch, batch_sharding(mesh))
        return jax.jit(step, out_shardings=(layout, None))(state, frozen, batch, jax.random.key(1))


def assert_equal_runs(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), one[0].params, other[0].params
    )
    np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], rtol=1e-5)


def test_loss_without_augmentation_is_smoothed_cross_entropy_by_hand():
    config = small_config(erase=0.0, mixup=0.0, cutmix=0.0)
    config.data.flip = False
    system, batch = systems.build(config), clips()
    params = system.init(jax.random.key(0))
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    loss, _ = system.loss(params, system.targets(None, batch, keys), keys, False)
    logits = np.asarray(system.logits(params, {"video": batch["video"]}), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    soft = np.full((BATCH, CLASSES), 0.1 / CLASSES)
    soft[np.arange(BATCH), batch["label"]] += 0.9
    np.testing.assert_allclose(loss.total / loss.weight, -(soft * log_probs).sum(1).mean(), 1e-5)


def test_logits_are_the_head_on_pooled_features():
    system, batch = small_system(), clips()
    params = system.init(jax.random.key(0))
    pooled = system.encoder.pooled(params, batch)
    head = params["head"]
    np.testing.assert_allclose(
        pooled @ head["kernel"] + head["bias"], system.logits(params, batch), atol=1e-5
    )


def test_tokens_of_a_layer_are_those_of_a_shallower_encoder():
    system, batch = small_system(), clips()
    params = system.init(jax.random.key(0))
    config = small_config()
    config.model.encoder.depth = 1
    first = jax.tree.map(lambda x: x[:1], params["encoder"]["blocks"])
    shallow = {**params, "encoder": {**params["encoder"], "blocks": first}}
    wanted = systems.build(config).encoder.tokens(shallow, batch, 1)
    assert wanted.shape == (BATCH, 2 * 4 * 4, 16)
    np.testing.assert_allclose(system.encoder.tokens(params, batch, 1), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="layer 3 of a stack of 2"):
        system.encoder.tokens(params, batch, 3)


def test_mixing_changes_the_targets_of_pairs_and_keeps_their_sum():
    batch, system = clips(), small_system()
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    target = jax.jit(lambda *x: system.targets(None, *x)["target"])(batch, keys)
    clean = np.full((BATCH, CLASSES), 0.1 / CLASSES)
    clean[np.arange(BATCH), batch["label"]] += 0.9
    pairs = (BATCH // 2, 2, CLASSES)
    np.testing.assert_allclose(target.reshape(pairs).sum(1), clean.reshape(pairs).sum(1), atol=1e-6)
    assert np.abs(target - clean).max() > 0.01


def test_micro_batches_keep_pairs_together_and_equal_one_batch():
    whole = train(clips())
    assert_equal_runs(train(clips(), accumulate=2), whole)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_layouts_equal_one_device(fsdp):
    # Two clips, a pair, on each of four devices.
    mesh = make_mesh(fsdp, jax.devices()[:4])
    assert_equal_runs(train(clips(), mesh=mesh), train(clips()))


def test_clip_without_label_is_reported_and_teaches_nothing():
    batch = clips()
    batch["label"][3] = -1
    state, metrics = train(batch)
    assert metrics["skipped"] == 1
    before = jax.jit(small_system().init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_open_number_of_classes_is_an_error():
    config = small_config()
    config.model.num_classes = 0
    system = systems.build(config)
    assert system.logits is None
    keys, batch = jax.random.split(jax.random.key(0), BATCH), clips()
    with pytest.raises(config_lib.ConfigError, match=r"num_classes=0: give at least 2"):
        system.targets(None, batch, keys)
    config.model.num_classes = 1
    with pytest.raises(config_lib.ConfigError, match=r"num_classes=1: give at least 2"):
        systems.build(config)


def test_odd_micro_batches_cannot_be_mixed():
    config = small_config()
    config.data.repeats, config.train.batch_videos = 1, 5
    with pytest.raises(config_lib.ConfigError, match="mixup needs pairs"):
        config_lib.validate(config)
    config.augment.update(mixup=0.0, cutmix=0.0)
    config_lib.validate(config)


def distilled(**fields):
    config = small_config("distill", mixup=0.0, cutmix=0.0, erase=0.0)
    config.data.flip = False
    config.distill.update(fields)
    return systems.build(config)


@pytest.mark.parametrize(("times_square", "factor"), [(True, 4.0), (False, 1.0)])
def test_distillation_is_the_divergence_at_a_temperature_by_hand(times_square, factor):
    system = distilled(temperature=2.0, times_square=times_square)
    batch = clips()
    params, frozen = system.init(jax.random.key(0)), system.init_frozen(jax.random.key(7))
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    loss, metrics = system.loss(params, system.targets(frozen, batch, keys), keys, False)

    def softmax(logits):
        exp = np.exp(np.asarray(logits, np.float64) / 2.0)
        return exp / exp.sum(1, keepdims=True)

    p, q = softmax(system.logits(frozen, batch)), softmax(system.logits(params, batch))
    wanted = (p * np.log(p / q)).sum(1).mean()
    np.testing.assert_allclose(loss.total / loss.weight, factor * wanted, rtol=1e-4)
    agreement = (p.argmax(1) == q.argmax(1)).mean()
    np.testing.assert_allclose(metrics["agreement"].total / BATCH, agreement)


def test_student_equal_to_its_teacher_has_nothing_to_learn():
    system, batch = distilled(), clips()
    params = system.init(jax.random.key(0))
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    prepared = system.targets(params, batch, keys)
    grads = jax.grad(lambda p: system.loss(p, prepared, keys, False)[0].total)(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4


def test_teacher_that_sees_clean_clips_has_its_answers_mixed():
    system = small_system("distill")
    config = small_config("distill")
    config.distill.teacher_view = "clean"
    clean, batch = systems.build(config), clips()
    frozen = system.init_frozen(jax.random.key(7))
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    same, other = (jax.jit(s.targets)(frozen, batch, keys)["answer"] for s in (system, clean))
    np.testing.assert_allclose(other.sum(1), 1.0, rtol=1e-5)
    assert np.abs(same - other).max() > 1e-3


def test_labels_count_by_their_share():
    system, batch = distilled(label_weight=1.0), clips()
    params, frozen = system.init(jax.random.key(0)), system.init_frozen(jax.random.key(7))
    keys = clip_keys(jax.random.key(1), 0, batch["index"])
    loss, _ = system.loss(params, system.targets(frozen, batch, keys), keys, False)
    config = small_config(erase=0.0, mixup=0.0, cutmix=0.0)
    config.data.flip = False
    classify = systems.build(config)
    wanted, _ = classify.loss(params, classify.targets(None, batch, keys), keys, False)
    np.testing.assert_allclose(loss.total, wanted.total, rtol=1e-6)


def test_the_sinusoid_of_another_grid_is_that_of_its_stored_table():
    config = small_config()
    config.model.sincos_grid = (4, 2, 2)  # the clip's is (2, 4, 4)
    fixed = systems.build(config)
    config = config.copy_and_resolve_references()
    config.model.update(positions="frozen", sincos_grid=())
    stored = systems.build(config)
    params = jax.jit(fixed.init)(jax.random.key(0))
    table = jnp.asarray(sincos_positions((2, 4, 4), 16, origin=(4, 2, 2)))
    same = params | {"encoder": params["encoder"] | {"pos_embed": table}}
    batch = {"video": clips()["video"][:2]}
    logits = jax.jit(fixed.logits)(params, batch)
    np.testing.assert_allclose(jax.jit(stored.logits)(same, batch), logits, atol=1e-6)
    own = jax.jit(small_system().logits)(params, batch)
    assert np.abs(own - logits).max() > 1e-3
