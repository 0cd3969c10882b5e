import json

import numpy as np
import pytest

from vmae_jax.config import ConfigError
from vmae_jax.train import metrics


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_after_the_checkpoint_and_cut_lines_are_dropped_on_resume(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 1}\n{"st')
    writer = metrics.Writer(str(tmp_path), total_steps=9, first_step=2)
    writer.write(3, {"loss": 1.5, "grad_norm": float("nan")})
    writer.close()
    assert rows(tmp_path) == [
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 2},
        {"step": 3, "loss": 1.5, "grad_norm": None},
    ]
    assert "cut off by a crash" in caplog.text
    assert list((tmp_path / "tensorboard").iterdir())


def test_decode_times_show_a_slow_video_and_a_slow_worker():
    # Worker 0 spends 0.1 + 0.3 s, worker 2 spends 1.2 s, worker 1 took no part: mean 0.8.
    row = metrics.decode_times(np.array([0.1, 1.2, 0.3]), np.array([0, 2, 0]))
    assert row == pytest.approx(
        {"decode_ms": 1600 / 3, "decode_ms_max": 1200.0, "worker_imbalance": 1.5}
    )


def test_rates_by_hand(monkeypatch):
    clock = iter([0.0, 10.0, 10.0])  # made, row, restarted by row
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 2)
    monkeypatch.setattr(metrics, "device_memory_gib", lambda: None)
    rate = metrics.Throughput(clips=8, videos=2, train_flops=1e9, peak_flops=1e10)
    for wait_s in (1.0, 0.0, 0.5, 0.0):
        rate.add(wait_s)
    assert rate.row(steps_left=6) == {
        "step_s": 2.5,
        "clips_per_s": 3.2,
        "videos_per_s": 0.8,
        "clips_per_s_per_chip": 1.6,
        "data_wait": 0.15,
        "eta_s": 15.0,
        "mfu": 0.16,
    }


def test_interval_without_steps_has_no_rates():
    rate = metrics.Throughput(clips=8, videos=2, train_flops=1e9, peak_flops=None)
    assert rate.row(steps_left=6) == {}


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v4", 275),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("cpu", None),
    ],
)
def test_peak_of_a_chip_is_its_datasheets_or_unknown(monkeypatch, kind, tflops):
    device = type("Device", (), {"device_kind": kind})()
    monkeypatch.setattr(metrics.jax, "local_devices", lambda: [device])
    expected = None if tflops is None else tflops * 1e12
    assert metrics.chip_peak_flops(0.0) == expected
    assert metrics.chip_peak_flops(2.0) == 2e12


def test_wandb_asked_for_and_missing_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb_project is set but wandb is not installed"):
        metrics.Writer(str(tmp_path), total_steps=1, first_step=0, wandb_project="x")


def test_picture_goes_to_tensorboard(tmp_path):
    writer = metrics.Writer(str(tmp_path), total_steps=1, first_step=0)
    before = sum(f.stat().st_size for f in (tmp_path / "tensorboard").iterdir())
    writer.picture("x", np.zeros((64, 64, 3), np.uint8), 1)
    writer.close()
    assert sum(f.stat().st_size for f in (tmp_path / "tensorboard").iterdir()) > before + 50
