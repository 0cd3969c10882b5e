"""Facts of the compiled step that cost memory or speed when they change unnoticed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.train import optim
from vmae_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import StepOptions, lower_step, make_train_step


@pytest.fixture(scope="module")
def program():
    """The bf16 step of a small V2 on 8 devices, parameters shared by 4, as the loop compiles it."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 (fake) devices")
    config = config_lib.pretrain_defaults()
    for stack, width in (("encoder", 32), ("decoder", 16)):
        config.model[stack].update(width=width, depth=2, heads=2)
    config.model.tubelet = (2, 4, 4)
    config.data.update(frames=8, size=(16, 16))
    config.masking.decoder = ("running_cell", 0.5)
    system = systems.build(config)
    tx = optim.adamw_direction(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    step = make_train_step(system, tx, lambda step: jnp.float32(1e-3), StepOptions(clip_norm=1.0))
    mesh = make_mesh(4)
    with jax.set_mesh(mesh):
        key = jax.random.key(0)
        init = make_init(system.init, tx, ema=False)
        layout = state_shardings(jax.eval_shape(init, key), mesh)
        state = jax.jit(init, out_shardings=layout)(key)
        video = np.zeros((8, 8, 16, 16, 3), np.uint8)
        batch = {"video": video, "index": np.arange(8, dtype=np.int32)}
        batch = jax.device_put(batch, batch_sharding(mesh))
        lowered = lower_step(step, state, None, batch, key)
        return state, lowered.compile().as_text()


def test_every_leaf_of_the_state_is_donated(program):
    state, text = program
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", text.split("\n")[0])
    assert len(aliases) == len(jax.tree.leaves(state))


def test_there_is_no_float64(program):
    assert "f64[" not in program[1]


def test_kernels_are_gathered_in_bfloat16(program):
    gathers = re.findall(r"= (\w+)\[([\d,]*)\][^=]* all-gather(?:-start)?\(", program[1])
    assert gathers, "no parameter is gathered: is anything sharded?"
    # CPUs have no bf16 matmul of their own and may widen first; what must not travel is float32
    # *master* weights of whole stacks, i.e. anything with the layers axis in front.
    assert not [shape for _, shape in gathers if shape.startswith("2,") and shape.count(",") == 2]


def test_pixels_are_not_converted_before_the_gather(program):
    # All 64 patches of a clip are 96 bytes each; only visible and target ones may become floats.
    assert not re.search(r"= f32\[\d+,64,96\]", program[1])
    assert not re.search(r"= f32\[\d+,8,16,16,3\]", program[1])
