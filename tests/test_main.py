"""The command itself, as a user types it: in its own process, on generated videos."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from vmae_jax import config as config_lib
from vmae_jax import main
from vmae_jax.data.synthetic import generate

ROOT = pathlib.Path(__file__).parents[1]
TINY = (
    "--config.data.size=(32,32)",
    "--config.train.batch_videos=4",  # 8 clips, for 8 devices
    "--config.data.workers=0",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=2",
    "--config.train.picture_every=0",
    "--config.train.steps=12",
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    generate(folder, num_videos=30)
    return folder


def command(videos, workdir, *flags, config="configs/demo.py:smoke"):
    return [
        sys.executable,
        "-m",
        "vmae_jax.main",
        f"--config={ROOT / config}",
        f"--config.data.manifest={videos / 'train.csv'}",
        f"--workdir={workdir}",
        *flags,
    ]


def environment(devices=8):
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def run(*args, devices=8, **kwargs):
    # From another folder on purpose: a config must not depend on where it is run from.
    return subprocess.run(
        command(*args, **kwargs),
        env=environment(devices),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def rows(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def params(workdir, step):
    folder = pathlib.Path(workdir) / "checkpoints" / str(step)
    return ocp.load_checkpointables(folder, {"params": None})["params"]


@pytest.fixture(scope="module")
def unbroken(videos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    result = run(videos, workdir, *TINY)
    assert result.returncode == 0, result.stderr
    return workdir


def test_workdir_in_a_bucket_is_refused_before_anything_is_made():
    with pytest.raises(config_lib.ConfigError, match="gs://bucket/run: a run writes to a folder"):
        main.run(config_lib.pretrain_defaults(), "gs://bucket/run")


def test_run_leaves_config_metrics_and_checkpoints(unbroken):
    logged = rows(unbroken)
    assert [row["step"] for row in logged] == list(range(1, 13))
    expected = {"loss", "lr", "grad_norm", "param_norm", "step_s", "clips_per_s", "videos_per_s"}
    expected |= {"clips_per_s_per_chip", "data_wait", "eta_s", "decode_failures", "clips_crc32"}
    expected |= {"decode_ms", "decode_ms_max", "worker_imbalance", "worker_restarts"}
    assert expected <= logged[-1].keys()
    assert logged[0]["lr"] == 0.0 and logged[-1]["eta_s"] == 0.0
    assert json.loads((unbroken / "config.json").read_text())["system"] == "videomae"
    assert list((unbroken / "tensorboard").iterdir())
    steps = {p.name for p in (unbroken / "checkpoints").iterdir()}
    assert steps == {"8", "10", "12"}  # the last three


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_ends_as_the_unbroken_one(videos, unbroken, tmp_path, sent):
    after = random.Random().randint(1, 10)
    process = subprocess.Popen(
        command(videos, tmp_path, *TINY),
        env=environment(),
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < after:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=300)
    if sent == signal.SIGTERM:
        assert process.returncode in (143, 0), errors  # 0: it had just ended
        reached = rows(tmp_path)[-1]["step"]
        assert (tmp_path / "checkpoints" / str(reached)).is_dir(), errors
        assert "SIGTERM received: step" in errors or reached == 12

    result = run(videos, tmp_path, *TINY)
    assert result.returncode == 0, result.stderr
    a, b = rows(unbroken), rows(tmp_path)
    assert [r["step"] for r in b] == list(range(1, 13)), f"killed after {after} steps"
    for name in ("loss", "lr", "grad_norm", "clips_crc32"):
        assert [r[name] for r in a] == [r[name] for r in b], f"{name}, killed after {after} steps"
    jax.tree.map(np.testing.assert_array_equal, params(unbroken, 12), params(tmp_path, 12))


def test_another_device_count_continues_the_same_run(videos, unbroken, tmp_path):
    first = run(videos, tmp_path, *TINY, "--config.train.stop_after=6", devices=8)
    assert first.returncode == 0, first.stderr
    second = run(videos, tmp_path, *TINY, "--config.mesh.fsdp=2", devices=2)
    assert second.returncode == 0, second.stderr
    assert "Resumed from the checkpoint of step 6" in second.stderr
    a, b = rows(unbroken), rows(tmp_path)
    assert [r["clips_crc32"] for r in a] == [r["clips_crc32"] for r in b]
    np.testing.assert_allclose([r["loss"] for r in a], [r["loss"] for r in b], rtol=1e-4)


def test_init_from_takes_weights_only_and_starts_at_step_0(videos, unbroken, tmp_path):
    flags = (*TINY, f"--config.init_from={unbroken}", "--config.train.steps=1")
    result = run(videos, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    # The learning rate of step 0 is 0: the weights are still those that were loaded.
    assert rows(tmp_path)[0]["lr"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, params(unbroken, 12), params(tmp_path, 1))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config.data.manifest=/nowhere.csv"], "/nowhere.csv"),
        (["--config.masking.encoder=('tube',0.001)"], "pick a ratio"),
        (["--config.train.batch_videos=3"], "cannot share evenly"),
        (["--config.train.batch_videos=64"], "set it to"),
        (["--config.init_from=/nowhere"], "no weights at /nowhere"),
        (["--config.system=videomea"], "choose one of classify, distill, mae_st"),
        (["--config.optim.base_lrr=1"], "base_lrr"),
        (["--config.data.size=(32,32)"], "must be (height, width) in pixels"),  # given twice
        (["--config.model.encoder.attention=cudnn"], "needs a GPU"),
        (["--config.data.stride_overrides=(('(',2),)"], "config.data"),
        (["--config.data.clip_timeout_s=-1.0"], "must be positive"),
    ],
)
def test_bad_input_ends_in_a_sentence(videos, tmp_path, flags, sentence):
    result = run(videos, tmp_path, *TINY, *flags)
    assert result.returncode != 0
    assert sentence in result.stderr
    if "base_lrr" not in sentence:  # that one is absl's own report
        assert "Traceback" not in result.stderr


def test_checkpoint_of_another_model_is_refused_by_name(videos, unbroken):
    result = run(videos, unbroken, *TINY, "--config.model.encoder.width=48")
    assert result.returncode == 1
    assert "another model than the config describes" in result.stderr
    assert "encoder/blocks/attn/proj/bias: (2, 32) saved, (2, 48) wanted" in result.stderr


def test_changed_manifest_is_refused_on_resume(videos, unbroken, tmp_path):
    manifest = tmp_path / "shorter.csv"
    lines = (videos / "train.csv").read_text().splitlines()
    manifest.write_text("\n".join(lines[:-1]) + "\n")
    flags = (f"--config.data.manifest={manifest}", f"--config.data.root={videos}")
    result = run(videos, unbroken, *TINY, *flags, "--config.train.steps=14")
    assert result.returncode == 1
    assert "manifest_sha256 was" in result.stderr


def test_grey_clips_of_another_length_shape_and_tubelet(videos, tmp_path):
    flags = (
        "--config.model.channels=1",
        "--config.data.mean=(0.5,)",
        "--config.data.std=(0.25,)",
        "--config.data.frames=9",
        "--config.data.size=(24,40)",
        *TINY[1:],  # a tuple that is given twice becomes one longer tuple
        "--config.model.tubelet=(3,4,10)",
    )
    result = run(videos, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    assert 0 < rows(tmp_path)[-1]["loss"] < 2
    head = params(tmp_path, 12)["decoder"]["head"]["kernel"]
    assert head.shape[1] == 3 * 4 * 10 * 1
