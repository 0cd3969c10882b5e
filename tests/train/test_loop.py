"""The loop on a system one can work out by hand: a weight is pulled towards the clips' values."""

import dataclasses
import functools
import json
import os
import resource
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.ops.losses import Ratio
from vmae_jax.systems.base import ArraySpec, System
from vmae_jax.train import optim
from vmae_jax.train.checkpoints import CheckpointError
from vmae_jax.train.loop import NonFiniteError, Run, Trainer
from vmae_jax.train.step import StepOptions

CLIPS = 8


def one_weight(bad_from=10**9, bad_to=10**9):
    """Loss (w - x)^2 over the clips' values x; NaN where a clip's value lies in the bad range."""

    def loss(params, batch, keys, train):
        x = batch["video"].astype(jnp.float32)
        error = jnp.square(params["head"]["kernel"][0, 0] - x)
        error = jnp.where((x >= bad_from) & (x < bad_to), jnp.nan, error)
        return Ratio(error.sum(), jnp.float32(error.size)), {}

    return System(
        name="one_weight",
        init=lambda key: {"head": {"kernel": jnp.zeros((8, 1))}},
        targets=lambda frozen, batch, keys: batch,
        loss=loss,
        batch_spec={"video": ArraySpec((), "int32"), "index": ArraySpec((), "int32")},
        compute_dtype="float32",
        macs={"all": 1},
        train_flops=6.0,
    )


class Counting:
    """A pipeline whose batch of step i holds the value i eight times."""

    batch_videos = CLIPS

    def __init__(self, start, fail_at=None, hang_at=None):
        self.step, self.fail_at, self.hang_at = start, fail_at, hang_at
        self.hanging, self.closed = threading.Event(), threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        if self.step == self.fail_at:
            raise OSError("storage went away")
        if self.step == self.hang_at:
            self.hanging.set()
            self.closed.wait()
            raise OSError("closed")
        value = np.full(CLIPS, self.step, np.int32)
        self.step += 1
        return types.SimpleNamespace(
            arrays={"video": value, "index": np.arange(CLIPS, dtype=np.int32)},
            failures=[],
            decode_s=np.full(CLIPS, 0.5),
            worker=np.arange(CLIPS) % 2,
            restarts=0,
            names=lambda: [f"{value[0]}.mp4"],
        )

    def state(self):
        return {"batches": self.step, "what": "counting"}

    def close(self):
        self.closed.set()


def run_of(steps, **changes):
    run = Run(
        total_steps=steps,
        clips=CLIPS,
        stop_after=0,
        schedule=lambda step: jnp.float32(0.1),
        tx=optim.adamw_direction(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
        options=StepOptions(),
        seed=0,
        fsdp=1,
        log_every=4,
        eval_every=0,
        picture_every=0,
        checkpoint_every=100,
        keep_last=2,
        keep_every=0,
        max_skipped_in_a_row=3,
        peak_tflops=0.0,
        wandb_project="",
        config={"optim": {"lr": 0.1}, "size": (2, 2)},
    )
    return dataclasses.replace(run, **changes)


def fit(workdir, run, *, system=None, evaluate=None, check=lambda a, b: None, **pipeline):
    trainer = Trainer(system or one_weight(), run, str(workdir), evaluate=evaluate)
    return trainer.fit(functools.partial(Counting, **pipeline), check)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_last_steps_are_logged_and_saved_though_no_interval_ends_there(tmp_path):
    outcome = fit(tmp_path, run_of(6))
    assert outcome.step == 6
    assert [row["step"] for row in rows(tmp_path)] == [4, 6]
    assert saved_steps(tmp_path) == [6]
    # w starts at 0 and the clips are 0, 1, 2, 3: it moves by at most 0.1 a step, so the mean loss
    # of the first interval is close to (0 + 1 + 4 + 9) / 4.
    assert abs(rows(tmp_path)[0]["loss"] - 3.5) < 0.5


def test_error_of_the_pipeline_saves_the_steps_done_first(tmp_path):
    with pytest.raises(OSError, match="storage went away"):
        fit(tmp_path, run_of(20), fail_at=7)
    assert saved_steps(tmp_path) == [7]
    assert [row["step"] for row in rows(tmp_path)] == [4, 7]
    assert fit(tmp_path, run_of(20)).step == 20
    assert [row["step"] for row in rows(tmp_path)] == [4, 7, 8, 12, 16, 20]


def test_figures_of_the_parameters_are_logged_at_their_steps_with_their_cost(tmp_path):
    def evaluate(params):
        return {"val_weight": float(params["head"]["kernel"][0, 0])}

    fit(tmp_path, run_of(6, eval_every=3, log_every=6), evaluate=evaluate)
    first, loss, second = rows(tmp_path)
    assert (first["step"], loss["step"], second["step"]) == (3, 6, 6)
    assert 0 < first["val_weight"] < second["val_weight"]
    assert "loss" in loss and "loss" not in second
    assert 0 < second["eval_share"] < 1 and second["eval_s"] > 0


def test_error_of_an_evaluation_saves_the_steps_done_first(tmp_path):
    def evaluate(params):
        raise OSError("storage went away")

    with pytest.raises(OSError, match="storage went away"):
        fit(tmp_path, run_of(20, eval_every=7), evaluate=evaluate)
    assert saved_steps(tmp_path) == [7]


def test_signal_while_waiting_for_data_saves_and_stops(tmp_path):
    pipelines = []

    def open_pipeline(start):
        pipelines.append(Counting(start, hang_at=5))
        threading.Thread(target=send_when_hanging, args=(pipelines[0],), daemon=True).start()
        return pipelines[0]

    def send_when_hanging(pipeline):
        pipeline.hanging.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = Trainer(one_weight(), run_of(20), str(tmp_path)).fit(open_pipeline, lambda a, b: None)
    assert outcome.signal == "SIGTERM"
    assert 2 <= outcome.step <= 5  # at most two batches that were ready are left
    assert saved_steps(tmp_path) == [outcome.step]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_non_finite_updates_in_a_row_stop_the_run_and_name_their_clips(tmp_path):
    # Updates 2, 3, 4 (three in a row) are bad and update 5 is good again: still a reason to stop.
    with pytest.raises(NonFiniteError, match="3 updates in a row up to step 8"):
        fit(tmp_path, run_of(20, log_every=8), system=one_weight(bad_from=2, bad_to=5))
    lines = (tmp_path / "skipped.0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "clips": [f"{step - 1}.mp4"]} for step in (3, 4, 5)
    ]
    assert saved_steps(tmp_path) == [8]
    row = rows(tmp_path)[-1]
    assert (row["skipped"], row["skipped_total"], row["skipped_in_a_row"]) == (3, 3, 3)
    assert np.isfinite(row["loss"])  # the mean over the good ones


def test_a_few_non_finite_updates_are_survived(tmp_path):
    outcome = fit(tmp_path, run_of(8), system=one_weight(bad_from=2, bad_to=4))
    assert outcome.step == 8 and outcome.last_row["skipped_total"] == 2


def test_finished_run_does_nothing_and_opens_no_pipeline(tmp_path):
    fit(tmp_path, run_of(4))

    def refuse(start):
        raise AssertionError("opened")

    assert Trainer(one_weight(), run_of(4), str(tmp_path)).fit(refuse, lambda a, b: None).step == 4


@pytest.fixture
def small_disk():
    """A function that limits the size of every file of this process; None: no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


def large():
    """A system whose checkpoints are larger than 100 kB, however well they are compressed."""
    kernel = np.random.default_rng(0).normal(size=(2**15, 1)).astype(np.float32)
    return dataclasses.replace(one_weight(), init=lambda key: {"head": {"kernel": kernel}})


def test_failed_save_is_reported_and_training_goes_on_to_the_next(tmp_path, caplog, small_disk):
    def draw(params, frozen, clips, key):  # at step 6, before its save
        small_disk(None)
        return np.zeros((4, 4, 3), np.uint8)

    small_disk(50_000)
    run = run_of(6, checkpoint_every=2, log_every=1, picture_every=6)
    outcome = Trainer(large(), run, str(tmp_path), draw=draw).fit(Counting, lambda a, b: None)
    assert outcome.step == 6
    assert "CHECKPOINT OF STEP 2 COULD NOT BE SAVED" in caplog.text
    assert "File too large" in caplog.text
    assert 2 not in saved_steps(tmp_path) and saved_steps(tmp_path)[-1] == 6
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert [row["failed_saves"] for row in rows(tmp_path)][:5] == [0, 0, 0, 0, 1]
    assert fit(tmp_path, run_of(8), system=large()).step == 8


def test_run_whose_last_save_fails_does_not_claim_to_be_done(tmp_path, small_disk):
    fit(tmp_path, run_of(2), system=large())
    small_disk(50_000)
    with pytest.raises(CheckpointError, match="step 6 was reached but could not be saved"):
        fit(tmp_path, run_of(6), system=large())
    assert saved_steps(tmp_path) == [2]
    small_disk(None)
    assert fit(tmp_path, run_of(6), system=large()).step == 6


def test_full_disk_under_the_log_does_not_end_the_run(tmp_path, caplog, small_disk):
    limits = iter([None, 1, 1, None])  # from each picture on

    def draw(params, frozen, clips, key):
        small_disk(next(limits, None))
        return np.zeros((4, 4, 3), np.uint8)

    run = run_of(5, log_every=1, picture_every=1)
    assert Trainer(one_weight(), run, str(tmp_path), draw=draw).fit(Counting, lambda a, b: None)
    assert "metrics of step 3 could not be written" in caplog.text
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 5]


def test_changed_config_is_named_on_resume(tmp_path, caplog):
    fit(tmp_path, run_of(4))
    changed = run_of(8, config={"optim": {"lr": 0.2}, "size": (2, 2)})
    fit(tmp_path, changed)
    assert "config.optim.lr was 0.1 and is 0.2" in caplog.text
    assert "config.size" not in caplog.text


def test_weights_to_start_from_are_taken_as_they_are(tmp_path):
    weights = {"head": {"kernel": jnp.arange(8.0).reshape(8, 1)}}
    placed = []

    def init_params(abstract):
        placed.append(jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), weights, abstract))
        return placed[0]

    run = run_of(1, schedule=lambda step: jnp.float32(0.0))
    trainer = Trainer(one_weight(), run, str(tmp_path))
    trainer.fit(Counting, lambda a, b: None, init_params)
    from vmae_jax.train.checkpoints import read_params

    loaded, _, _ = read_params(str(tmp_path))
    np.testing.assert_array_equal(loaded["head"]["kernel"], weights["head"]["kernel"])


def test_pictures_show_one_clip_of_each_of_the_first_videos_each_time(tmp_path):
    seen = []

    def draw(params, frozen, clips, key):
        seen.append({name: np.asarray(x) for name, x in clips.items()})
        return np.zeros((4, 4, 3), np.uint8)

    class Repeated(Counting):
        batch_videos = 4  # two crops of each

    run = run_of(4, picture_every=2)
    Trainer(one_weight(), run, str(tmp_path), draw=draw).fit(Repeated, lambda a, b: None)
    assert [s["index"].tolist() for s in seen] == [[0, 2, 4, 6]] * 2
    assert [s["video"].tolist() for s in seen] == [[0] * 4] * 2
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "step_00000002.png",
        "step_00000004.png",
    ]
