import dataclasses
import itertools
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmae_jax.train.checkpoints import CheckpointError, Checkpoints, read_params
from vmae_jax.train.sharding import make_mesh
from vmae_jax.train.state import TrainState


def state_of(value, *, width=4, ema=None):
    def count(n):
        return jnp.asarray(n, jnp.int32)

    params = {"head": {"kernel": jnp.full((2, width), float(value))}}
    return TrainState(
        step=count(value),
        params=params,
        opt_state=({"mu": jax.tree.map(lambda p: 2 * p, params)},),
        ema=None if ema is None else {"head": {"kernel": jnp.full((2, width), float(ema))}},
        skipped=count(1),
        skipped_in_a_row=count(0),
        decode_failures=count(5),
    )


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def saved(folder, steps, *, keep_last=3, keep_every=0, **options):
    checkpoints = Checkpoints(str(folder), keep_last=keep_last, keep_every=keep_every)
    for step in steps:
        data, config = {"batches": step}, {"size": (2, 4), "name": "x"}
        checkpoints.save(state_of(step, **options), step=step, data=data, config=config)
    checkpoints.close()
    return Checkpoints(str(folder), keep_last=keep_last, keep_every=keep_every)


def test_newest_checkpoint_comes_back_whole(tmp_path):
    state, data, meta = saved(tmp_path, [1, 2]).restore_latest(abstract(state_of(0)))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(2))
    assert data == {"batches": 2}
    assert meta["config"] == {"size": [2, 4], "name": "x"}
    assert meta["versions"]["jax"] == jax.__version__


def test_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep_last=1, keep_every=0)
    assert checkpoints.restore_latest(abstract(state_of(0))) is None


def test_last_k_and_every_n_are_kept(tmp_path):
    assert saved(tmp_path, range(1, 9), keep_last=2, keep_every=3).steps == [3, 6, 7, 8]


def copies_with_one_file_damaged(folder, tmp_path):
    """Copies of a workdir, in each of which one file of checkpoint 3 is cut short or missing."""
    newest = folder / "checkpoints" / "3"
    files = sorted(path.relative_to(folder) for path in newest.rglob("*") if path.is_file())
    for number, (file, keep) in enumerate(itertools.product(files, (None, 0, 0.5))):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        if keep is None:
            (copy / file).unlink()
        else:
            whole = (copy / file).read_bytes()
            (copy / file).write_bytes(whole[: int(keep * len(whole))])
        yield copy, f"{file} {'missing' if keep is None else f'cut to {keep}'}"


def test_any_file_of_the_newest_cut_short_or_missing_falls_back_or_does_no_harm(tmp_path, caplog):
    saved(tmp_path / "whole", [1, 2, 3]).close()
    fell_back = []
    for copy, what in copies_with_one_file_damaged(tmp_path / "whole", tmp_path):
        caplog.clear()
        checkpoints = Checkpoints(str(copy), keep_last=3, keep_every=0)
        state, data, _ = checkpoints.restore_latest(abstract(state_of(0)))
        checkpoints.close()
        step = int(state.step)
        assert step in (2, 3), what
        jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
        assert data == {"batches": step}, what
        if step == 2:
            fell_back.append(what)
            assert "falling back" in caplog.text, what
    for part in ("params", "progress", "data", "meta"):
        assert any(f"3/{part}/" in what for what in fell_back)


def test_shards_are_restored_where_they_belong_and_nowhere_else(tmp_path):
    mesh = make_mesh(jax.device_count())
    rows = 2 * jax.device_count()

    def laid_out(state):
        layout = NamedSharding(mesh, P("fsdp"))
        kernel = jax.device_put(jnp.arange(4.0 * rows).reshape(rows, 4), layout)
        return dataclasses.replace(state, params={"head": {"kernel": kernel}})

    checkpoints = Checkpoints(str(tmp_path), keep_last=1, keep_every=0)
    checkpoints.save(laid_out(state_of(1)), step=1, data={}, config={})
    assert checkpoints.wait()
    state, _, _ = checkpoints.restore_latest(abstract(laid_out(state_of(0))))
    kernel = state.params["head"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(kernel, np.arange(4.0 * rows).reshape(rows, 4))


def test_damaged_newest_falls_back_loudly_and_makes_room(tmp_path, caplog):
    checkpoints = saved(tmp_path, [1, 2, 3])
    checkpoints.close()
    for file in (tmp_path / "checkpoints" / "3" / "params").rglob("*"):
        if file.is_file() and file.name not in ("commit_success.txt",):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(str(tmp_path), keep_last=3, keep_every=0)
    state, data, _ = checkpoints.restore_latest(abstract(state_of(0)))
    assert (int(state.step), data) == (2, {"batches": 2})
    assert "CANNOT BE READ" in caplog.text and "falling back" in caplog.text
    assert (tmp_path / "checkpoints" / "3.unreadable").is_dir()
    checkpoints.save(state_of(3), step=3, data={"batches": 3}, config={})
    checkpoints.close()
    again = Checkpoints(str(tmp_path), keep_last=3, keep_every=0)
    assert int(again.restore_latest(abstract(state_of(0)))[0].step) == 3


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    saved(tmp_path, [1]).close()
    for file in (tmp_path / "checkpoints" / "1" / "params").rglob("_METADATA"):
        file.write_text("")
    checkpoints = Checkpoints(str(tmp_path), keep_last=3, keep_every=0)
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        checkpoints.restore_latest(abstract(state_of(0)))


def test_left_over_of_a_killed_save_is_removed(tmp_path):
    checkpoints = saved(tmp_path, [1])
    checkpoints.close()
    debris = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    debris.mkdir()
    (debris / "params").mkdir()
    checkpoints = Checkpoints(str(tmp_path), keep_last=3, keep_every=0)
    assert checkpoints.steps == [1]
    deadline = time.monotonic() + 20  # orbax cleans up in the background
    while debris.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not debris.exists()


def test_other_shape_names_the_parameter(tmp_path):
    checkpoints = saved(tmp_path, [1])
    with pytest.raises(CheckpointError, match=r"head/kernel: \(2, 4\) saved, \(2, 5\) wanted"):
        checkpoints.restore_latest(abstract(state_of(0, width=5)))


def test_weights_alone_from_workdir_or_step(tmp_path):
    saved(tmp_path, [1, 2], ema=7).close()
    params, part, _ = read_params(str(tmp_path), prefer_ema=False)
    assert part == "params" and params["head"]["kernel"][0, 0] == 2.0
    assert isinstance(params["head"]["kernel"], np.ndarray)
    params, _, _ = read_params(str(tmp_path / "checkpoints" / "1"), prefer_ema=False)
    assert params["head"]["kernel"][0, 0] == 1.0
    averaged, part, meta = read_params(str(tmp_path))
    assert part == "ema" and averaged["head"]["kernel"][0, 0] == 7.0
    assert "config" in meta
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        read_params(str(tmp_path / "nowhere"))
    (tmp_path / "checkpoints" / "2" / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_params(str(tmp_path), prefer_ema=False)
