"""A teacher is named by its file and known by its hash, whatever the system; no run holds it."""

import hashlib
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax import assemble
from vmae_jax import config as config_lib
from vmae_jax.train.checkpoints import Checkpoints
from vmae_jax.train.state import TrainState

DEFAULTS = [config_lib.distill_defaults, config_lib.umt_defaults]


@pytest.fixture(params=DEFAULTS, ids=["distill", "umt"])
def config(request, tmp_path):
    config = request.param()
    config.teacher.weights = written(tmp_path / "a.safetensors", 1)
    return config


def written(path, number):
    save_file({"x": np.full(3, number, np.float32)}, path)
    return str(path)


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def saved(workdir, config, step=1):
    """A checkpoint, of a state as small as can be, with a config."""
    nothing = jnp.zeros((), jnp.int32)
    state = TrainState(nothing, {"head": {"bias": jnp.zeros(2)}}, (), None, *[nothing] * 3)
    checkpoints = Checkpoints(str(workdir), keep_last=2, keep_every=0)
    checkpoints.save(state, step=step, data={}, config=config.to_dict())
    checkpoints.close()


def test_the_hash_is_written_into_the_config_and_nothing_else_changes(config, tmp_path):
    known = assemble.with_teacher(config, str(tmp_path / "run"))
    assert known.teacher.sha256 == sha256(config.teacher.weights)
    known = known.copy_and_resolve_references()
    known.teacher.sha256 = ""
    assert known.to_dict() == config.to_dict()


def test_a_run_goes_on_with_the_same_bytes_wherever_they_lie(config, tmp_path):
    run, first = tmp_path / "run", config.teacher.weights
    saved(run, assemble.with_teacher(config, str(run)))
    config.teacher.weights = written(tmp_path / "moved.safetensors", 1)
    assert assemble.with_teacher(config, str(run)).teacher.sha256 == sha256(first)
    config.teacher.weights = written(tmp_path / "other.safetensors", 2)
    with pytest.raises(
        config_lib.ConfigError, match=rf"run was made with a teacher of.*{sha256(first)}"
    ):
        assemble.with_teacher(config, str(run))
    assert assemble.with_teacher(config, str(tmp_path / "another")).teacher.sha256


def test_a_checkpoint_that_does_not_say_is_gone_on_with(config, tmp_path):
    saved(tmp_path / "run", config)
    assert assemble.with_teacher(config, str(tmp_path / "run")).teacher.sha256


def test_an_unreadable_checkpoint_is_passed_over(config, tmp_path):
    run = tmp_path / "run"
    for step in (1, 2):
        saved(run, assemble.with_teacher(config, str(run)), step=step)
    for file in (run / "checkpoints" / "2" / "meta").iterdir():
        file.write_bytes(b"")
    config.teacher.weights = written(tmp_path / "other.safetensors", 2)
    with pytest.raises(config_lib.ConfigError, match="run was made with a teacher of"):
        assemble.with_teacher(config, str(run))


def test_a_recipe_that_names_its_teacher_takes_no_other(config, tmp_path):
    config.teacher.sha256 = "0" * 64
    with pytest.raises(config_lib.ConfigError, match=r"config\.teacher\.sha256 was made with"):
        assemble.with_teacher(config, str(tmp_path / "run"))
    config.teacher.sha256 = "abc"
    with pytest.raises(config_lib.ConfigError, match="64 hexadecimal digits"):
        config_lib.validate(config)


def test_a_file_that_changes_under_a_run_is_noticed_when_it_is_loaded(tmp_path):
    config = config_lib.umt_defaults()
    tower = {"encoder/patch_embed/kernel": np.ones((2, 2), np.float32)}
    config.teacher.weights = str(tmp_path / "a.safetensors")
    save_file(tower, config.teacher.weights)
    known = assemble.with_teacher(config, str(tmp_path / "run"))
    save_file({name: array + 1 for name, array in tower.items()}, config.teacher.weights)
    with pytest.raises(config_lib.ConfigError, match="give the file that the recipe was made with"):
        assemble.frozen_weights(known)({})


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_a_teacher_without_weights_is_asked_for(defaults, tmp_path):
    with pytest.raises(config_lib.ConfigError, match=r"teacher\.weights is empty.*docs/weights"):
        assemble.with_teacher(defaults(), str(tmp_path))
    with pytest.raises(config_lib.ConfigError, match=r"teacher\.weights is empty"):
        assemble.frozen_weights(defaults())


def test_a_system_without_a_teacher_needs_none(tmp_path):
    config = config_lib.pretrain_defaults()
    assert assemble.with_teacher(config, str(tmp_path)) is config
    assert assemble.frozen_weights(config) is None
