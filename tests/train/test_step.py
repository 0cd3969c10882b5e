import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.ops.resize import resized_crops
from vmae_jax.systems.base import clip_keys
from vmae_jax.train import optim
from vmae_jax.train.loop import check_batch
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, make_train_step

BATCH = 8


@functools.cache
def small_system(**data):
    """V2 on a 4 x 4 x 4 grid: the number of loss tokens varies from clip to clip."""
    config = config_lib.pretrain_defaults()
    for stack, width in (("encoder", 32), ("decoder", 16)):
        config.model[stack].update(width=width, depth=2, heads=2, remat="none")
    config.model.tubelet = (2, 4, 4)
    config.model.dtype = "float32"
    config.data.update(frames=8, size=(16, 16), flip=True, **data)
    config.masking.encoder = ("random", 0.75)
    config.masking.decoder = ("running_cell", 0.5)
    config_lib.validate(config)
    return systems.build(config)


def clips(seed=0):
    video = np.random.default_rng(seed).integers(0, 256, (BATCH, 8, 16, 16, 3), np.uint8)
    return {"video": video, "index": np.arange(100, 100 + BATCH, dtype=np.int32)}


def tx():
    # With Adam's usual 1e-8, a gradient that is all rounding noise still moves its weight by the
    # full learning rate, and no two orders of summation agree. With 1e-4 they must.
    return optim.adamw_direction(betas=(0.9, 0.95), eps=1e-4, weight_decay=0.05)


def new_state(ema=False):
    return jax.jit(make_init(small_system().init, tx(), ema=ema))(jax.random.key(0))


def stepper(system=None, **options):
    system = system or small_system()
    return jax.jit(
        make_train_step(system, tx(), lambda step: jnp.float32(1e-2), StepOptions(**options))
    )


def run(step_fn, state, batch, steps=1):
    for _ in range(steps):
        state, metrics = step_fn(state, None, batch, jax.random.key(1))
    return state, metrics


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_accumulated_micro_batches_equal_one_batch():
    batch = clips()
    whole, metrics = run(stepper(), new_state(), batch, steps=3)
    for count in (2, 4):
        parts, other = run(stepper(accumulate=count), new_state(), batch, steps=3)
        assert_trees_close(parts.params, whole.params, atol=2e-6)
        np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-6)
        np.testing.assert_allclose(other["grad_norm"], metrics["grad_norm"], rtol=1e-5)


def test_clips_cut_on_the_device_train_as_if_cut_on_the_host():
    """Flips, keys and micro-batches go with the clips: 4 videos with 2 crops each."""
    system = small_system(resize="device", canvas=(20, 24), repeats=2)
    rng = np.random.default_rng(0)
    corner, extent = rng.integers(0, 6, (BATCH, 2)), rng.integers(9, 15, (BATCH, 2))
    batch = {
        "source": rng.integers(0, 256, (BATCH // 2, 8, 20, 24, 3), np.uint8),
        "box": np.concatenate([corner, extent], axis=1).astype(np.float32),
        "index": clips()["index"],
    }
    check_batch(system, batch)
    cut = resized_crops(batch["source"], jnp.asarray(batch["box"]), size=(16, 16))
    whole, metrics = run(stepper(), new_state(), {"video": cut, "index": batch["index"]})
    parts, other = run(stepper(system, accumulate=2), new_state(), batch)
    assert_trees_close(parts.params, whole.params, atol=2e-6)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"'source'\] of 8 clips is uint8 \(4, .* \(8, 8, 20, 24, 3"
    ):
        check_batch(small_system(resize="device", canvas=(20, 24), repeats=1), batch)


def test_gradient_is_that_of_the_mean_over_all_loss_tokens():
    system, state, batch = small_system(), new_state(), clips()
    keys = clip_keys(jax.random.key(1), state.step, batch["index"])

    def mean_loss(params):
        ratio, _ = system.loss(params, system.targets(None, batch, keys), keys, True)
        return ratio.total / ratio.weight

    loss, grads = jax.value_and_grad(mean_loss)(state.params)
    _, metrics = run(stepper(), state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_learning_lowers_the_loss():
    step_fn, batch = stepper(), clips()
    state, first = run(step_fn, new_state(), batch)
    _, last = run(step_fn, state, batch, steps=30)
    assert last["loss"] < 0.9 * first["loss"]


def test_non_finite_update_changes_nothing_but_the_counters():
    state = new_state(ema=True)
    # A weight that is finite itself and overflows in the forward pass.
    broken = jax.tree.map(jnp.copy, state)
    broken.params["decoder"]["head"]["kernel"] *= 1e38
    after, metrics = run(stepper(ema_decay=0.9), broken, clips(), steps=2)
    assert int(metrics["skipped"]) == 1
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 2, 2)
    assert_trees_close(after.params, broken.params, rtol=0)
    assert_trees_close(after.opt_state, broken.opt_state, rtol=0)
    assert_trees_close(after.ema, broken.ema, rtol=0)
    # A good update ends the row and keeps the count.
    after.params = state.params
    good, metrics = run(stepper(ema_decay=0.9), after, clips())
    assert int(metrics["skipped"]) == 0
    assert (int(good.skipped), int(good.skipped_in_a_row)) == (2, 0)


def test_ema_is_the_weighted_mean_of_the_parameters():
    start = new_state(ema=True)
    after, _ = run(stepper(ema_decay=0.75), start, clips())
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, start.ema, after.params)
    assert_trees_close(after.ema, expected, rtol=1e-5, atol=1e-7)


def test_clipping_scales_what_adam_sees():
    _, free = run(stepper(), new_state(), clips())
    limit = float(free["grad_norm"]) / 10
    clipped_state, clipped = run(stepper(clip_norm=limit), new_state(), clips())
    np.testing.assert_allclose(clipped["grad_norm"], free["grad_norm"], rtol=1e-6)
    moments = clipped_state.opt_state[0].mu
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in jax.tree.leaves(moments)))
    np.testing.assert_allclose(norm, 0.1 * limit, rtol=1e-3)  # mu = (1 - 0.9) * clipped gradient


def test_masks_follow_the_clip_not_its_row():
    system, batch = small_system(), clips()
    order = np.random.default_rng(0).permutation(BATCH)
    shuffled = {name: x[order] for name, x in batch.items()}
    results = [
        system.targets(None, b, clip_keys(jax.random.key(1), jnp.int32(5), b["index"]))
        for b in (batch, shuffled)
    ]
    for name, value in results[0].items():
        np.testing.assert_array_equal(value[order], results[1][name])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
@pytest.mark.parametrize(("fsdp", "accumulate"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2)])
def test_layouts_equal_one_device(fsdp, accumulate):
    options = {"clip_norm": 0.5, "ema_decay": 0.9, "accumulate": accumulate}
    one, metrics = run(stepper(**options), new_state(ema=True), clips(), steps=2)
    mesh = make_mesh(fsdp, jax.devices()[: BATCH // accumulate])
    fsdp = mesh.shape["fsdp"]
    with jax.set_mesh(mesh):
        init = make_init(small_system().init, tx(), ema=True)
        layout = state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
        kernel = state.params["encoder"]["blocks"]["attn"]["qkv"]["kernel"]
        assert kernel.sharding.spec == P(None, "fsdp", None)
        assert kernel.addressable_shards[0].data.shape[1] == 32 // fsdp
        batch = jax.device_put(clips(), batch_sharding(mesh))
        many, other = run(stepper(**options), state, batch, steps=2)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-6)
    assert_trees_close(jax.device_get(many.params), jax.device_get(one.params), atol=2e-6)


def test_axis_that_fsdp_does_not_divide_is_an_error_with_the_remedy():
    mesh = make_mesh(8)
    if mesh.shape["fsdp"] != 8:
        pytest.skip("needs 8 (fake) devices")
    odd = {"blocks": {"attn": {"proj": {"kernel": jax.ShapeDtypeStruct((2, 12, 12), "float32")}}}}
    with pytest.raises(ValueError, match=r"choose a mesh\.fsdp that divides 12"):
        state_shardings(odd, mesh)
