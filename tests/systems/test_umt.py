import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import chips, systems
from vmae_jax import config as config_lib
from vmae_jax.evals.reconstruct import make_reconstruct
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.umt import Student
from vmae_jax.ops import masking
from vmae_jax.ops.heat import heat
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.train import optim
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, make_train_step
from vmae_jax.variants import StackSpec

GRID = (2, 4, 4)


def small_config(**changes):
    """Clips of 2 x 16 x 16 in 32 tokens, 8 of them visible; two layers are aligned."""
    config = config_lib.umt_defaults().unlock()
    config.model.encoder.update(width=16, depth=2, heads=2, remat="none")
    config.teacher.encoder.update(width=16, depth=2, heads=2)
    config.model.update(tubelet=(1, 4, 4), dtype="float32", layers="unroll")
    config.teacher.update(tubelet=(1, 3, 3), size=(12, 12), output=6)
    config.align.layers = 2
    config.data.update(frames=2, size=(16, 16))
    config.masking.encoder = ("attention", 0.75)
    config.update_from_flattened_dict(changes)
    config_lib.validate(config)
    return config


def clips(count=2):
    video = np.random.default_rng(0).integers(0, 256, (count, 2, 16, 16, 3), np.uint8)
    return {"video": video, "index": np.arange(count, dtype=np.int32)}


KEYS = jax.random.split(jax.random.key(1), 2)


@pytest.fixture(scope="module")
def system():
    return systems.build(small_config(**{"data.flip": False}))


@pytest.fixture(scope="module")
def params(system):
    """Every parameter away from its initial value, so that all of them matter."""
    shapes, rng = jax.eval_shape(system.init, jax.random.key(0)), np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def frozen(system):
    return jax.jit(system.init_frozen)(jax.random.key(2))


def program_of(system, frozen):
    targets = jax.jit(lambda frozen, batch: system.targets(frozen, batch, KEYS))
    return targets.lower(frozen, clips()).compile()


@pytest.fixture(scope="module")
def program(system, frozen):
    return program_of(system, frozen)


@pytest.fixture(scope="module")
def batch(program, frozen):
    return program(frozen, clips())


def normalised(video):
    config = config_lib.umt_defaults()
    return (video / np.float32(255) - np.float32(config.data.mean)) / np.float32(config.data.std)


def test_targets_are_the_teachers_answers_to_the_tokens_that_its_attention_has_drawn(batch, frozen):
    teacher = image_teacher(small_config(), chips.local())
    features, attention = jax.jit(teacher.look)(frozen, normalised(clips()["video"]))
    drawn = masking.pretraining_masks(
        KEYS, grid=GRID, encoder=("attention", 0.75), importance=attention.reshape(2, 2, 16)
    )
    visible_idx = batch["visible_idx"]
    np.testing.assert_array_equal(visible_idx, drawn.visible_idx)
    assert visible_idx.shape == (2, 8) and ((visible_idx < 16).sum(axis=1) == 4).all()
    expected = np.stack([np.take_along_axis(f, visible_idx[..., None], 1) for f in features])
    np.testing.assert_allclose(batch["target"], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(batch["target"], axis=-1), 1, rtol=1e-5)


def test_loss_is_the_distance_to_the_teacher_over_layers_and_visible_tokens(system, params, batch):
    loss, metrics = jax.jit(lambda p, b: system.loss(p, b, KEYS, False))(params, batch)
    # The same from patches in the order of pixels, in which parameters are kept.
    net = functional(
        lambda rngs: Student(
            StackSpec(16, 2, 2),
            StackOptions(remat="none"),
            values=48,
            layers=(1, 2),
            output=6,
            rngs=rngs,
        )
    )
    patches = gather(patchify(normalised(clips()["video"]), (1, 4, 4)), batch["visible_idx"])
    said = jax.jit(lambda p: net.apply(p, patches, batch["visible_idx"], grid=GRID))(params)
    said = said / np.linalg.norm(said, axis=-1, keepdims=True)
    distance = np.square(said - batch["target"]).sum(axis=-1)
    np.testing.assert_allclose(loss.total / loss.weight, distance.mean(), rtol=1e-4)
    cosine = metrics["cosine"].total / metrics["cosine"].weight
    np.testing.assert_allclose(cosine, 1 - distance.mean() / 2, atol=1e-5)


def test_other_masks_need_no_attention_and_vectors_may_stay_as_they_are(program, params, frozen):
    fields = {"align.normalize": "none", "align.loss": "mse", "align.weight": 0.5}
    system = systems.build(small_config(**fields, **{"masking.encoder": ("tube", 0.75)}))
    tube = program_of(system, frozen)
    # The softmax that says where class tokens look is in the one program alone.
    counts = [one.as_text().count(" exponential(") for one in (program, tube)]
    assert counts[0] == counts[1] + 1
    batch = tube(frozen, clips())
    same = masking.pretraining_masks(KEYS, grid=GRID, encoder=("tube", 0.75)).visible_idx
    np.testing.assert_array_equal(batch["visible_idx"], same)
    assert np.ptp(np.linalg.norm(batch["target"], axis=-1)) > 0.1
    loss = jax.jit(lambda batch: system.loss(params, batch, KEYS, False)[0])
    near, far = (loss({**batch, "target": batch["target"] + away}) for away in (0.0, 100.0))
    # Half of a square that is all but 100 squared; what is near cancels or is small.
    np.testing.assert_allclose((far.total - near.total) / far.weight, 5000, rtol=0.1)


def test_pictures_show_what_is_kept_and_how_near_it_is(system, params, frozen, batch):
    videos = make_reconstruct(system)(params, frozen, clips(), jax.random.key(3))
    original, attention, kept, near = videos.values()
    np.testing.assert_array_equal(original, clips()["video"])
    hidden = (kept == np.rint(0.2 * original.astype(float))).all(axis=-1)
    hidden = hidden.reshape(2, 2, 4, 4, 4, 4).all(axis=(3, 5))  # of whole patches
    np.testing.assert_array_equal((~hidden).sum(axis=(2, 3)), 4)
    seen = np.kron(~hidden, np.ones((4, 4), bool))
    np.testing.assert_array_equal(kept[seen], original[seen])
    # In every frame one patch at least has the lightest colour, on what is left of the frame.
    lightest = 0.7 * 255 * np.asarray(heat(jnp.ones(())))
    assert (attention >= np.floor(lightest)).all(axis=-1).any(axis=(2, 3)).all()
    flat = near.reshape(2, 2, 4, 4, 4, 4, 3)
    assert (np.ptp(flat, axis=(3, 5))[~hidden] == 0).all()  # one colour a patch
    assert np.unique(near[seen], axis=0).shape[0] > 2


def test_the_encoder_sees_all_tokens_after_the_final_norm(system, params):
    encoder = system.encoder
    assert encoder.depth == 2 and encoder.grid(1) == GRID
    tokens = jax.jit(lambda p, b: encoder.tokens(p, b, 2))(params, clips())
    assert tokens.shape == (2, 32, 16)
    norm = jax.tree.map(np.asarray, params["encoder"]["norm"])
    plain = (tokens - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(plain.mean(axis=-1), 0, atol=1e-4)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 (fake) devices")
def test_neither_sharding_nor_accumulation_changes_a_step():
    fewer = {"teacher.encoder.depth": 1, "align.layers": 1, "model.layers": "scan"}
    system = systems.build(small_config(**fewer, **{"model.encoder.drop_path": 0.5}))
    # A large epsilon: a gradient that is all rounding noise must not move its weight.
    tx = optim.adamw_direction(betas=(0.9, 0.95), eps=1e-4, weight_decay=0.05)
    begin = jax.jit(make_init(system.init, tx, ema=False))(jax.random.key(0))
    teacher = jax.jit(system.init_frozen)(jax.random.key(2))

    def trained(mesh, *, accumulate=1):
        options = StepOptions(accumulate=accumulate)
        step = jax.jit(make_train_step(system, tx, lambda step: jnp.float32(1e-2), options))
        with jax.set_mesh(mesh):
            state, frozen = (
                jax.device_put(tree, state_shardings(tree, mesh)) for tree in (begin, teacher)
            )
            batch = jax.device_put(clips(8), batch_sharding(mesh))
            state, metrics = step(state, frozen, batch, jax.random.key(1))
            return jax.device_get(state.params), float(metrics["loss"])

    one, loss = trained(make_mesh(1, jax.devices()[:1]))
    many, other = trained(make_mesh(2, jax.devices()[:4]), accumulate=2)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), many, one)
