import json
import pathlib

import pytest

from vmae_jax.data.synthetic import generate
from vmae_jax.tools import bench

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f"--config={ROOT / 'configs' / 'demo.py'}:smoke"


def test_step_figures_are_consistent(tmp_path, capsys):
    out = tmp_path / "figures.jsonl"
    flags = ["step", SMOKE, "--clips=8", "--steps=2", "--warmup=1", f"--json={out}"]
    assert bench.main(flags) == 0
    row = json.loads(out.read_text())
    assert row["config"].endswith("demo.py:smoke") and row["decoder_mask"] == "running_cell/0.5"
    assert row["step_s_p95"] >= row["step_s"] > 0
    devices = int(row["device"].split()[0])
    assert row["clips_per_s_per_chip"] == pytest.approx(8 / row["step_s"] / devices)
    assert row["commit"] and row["versions"]["jax"]
    assert "clips_per_s_per_chip" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v2_vits_k710_distill", "umt_b_k710"])
def test_teacher_and_student_are_told_apart(name, tmp_path):
    out = tmp_path / "figures.jsonl"
    flags = [f"--config={ROOT / 'configs' / name}.py:smoke", "--clips=8", "--steps=1", "--warmup=0"]
    assert bench.main(["step", *flags, f"--json={out}"]) == 0
    row = json.loads(out.read_text())
    assert row["targets_s"] + row["rest_s"] == pytest.approx(row["step_s"])
    assert row["targets_share"] == pytest.approx(row["targets_s"] / row["step_s"])
    parts = row["gmac_teacher_per_clip"], row["gmac_student_per_clip"]
    assert min(parts) > 0 and sum(parts) == pytest.approx(row["gmac_forward_per_clip"])


def test_decoder_mask_can_be_switched_off_and_costs_more(tmp_path):
    out = tmp_path / "figures.jsonl"
    common = ["step", SMOKE, "--clips=8", "--steps=1", "--warmup=1", f"--json={out}"]
    assert bench.main(common) == 0
    assert bench.main([*common, "--decoder-mask=none", "--remat=full"]) == 0
    masked, whole = (json.loads(line) for line in out.read_text().splitlines())
    assert whole["decoder_mask"] == "none/0.0" and whole["remat"] == "full"
    assert whole["gmac_forward_per_clip"] > masked["gmac_forward_per_clip"]


def test_data_figures_name_every_stage(tmp_path, capsys):
    generate(tmp_path / "videos", num_videos=10)
    out = tmp_path / "figures.jsonl"
    manifest = f"--manifest={tmp_path / 'videos' / 'train.csv'}"
    flags = ["data", manifest, "--videos=4", "--batch=2", "--repeats=2", "--size=32"]
    flags += ["--resize=device", "--canvas=70x80", f"--json={out}"]
    for workers in (0, 1):
        assert bench.main([*flags, f"--workers={workers}"]) == 0
    for line in out.read_text().splitlines():
        row = json.loads(line)
        names = ("read", "index", "decode", "convert", "crop", "batch_and_transport")
        parts = [row[f"{name}_ms"] for name in names]
        assert min(parts[:5]) > 0
        assert sum(parts) == pytest.approx(row["host_ms_per_clip"])
        assert row["clips_per_s_per_core"] == pytest.approx(1000 / row["host_ms_per_clip"])
        assert row["share_of_vit_b_budget"] == pytest.approx(row["host_ms_per_clip"] / 8)
        # Half a source clip, its box (4 x 4 bytes), index and label.
        assert row["mb_per_clip"] == pytest.approx((16 * 70 * 80 * 3 / 2 + 16 + 4 + 4) / 1e6)


def test_data_figures_of_finetuning_and_test_clips(tmp_path, capsys):
    generate(tmp_path / "videos", num_videos=10)
    out = tmp_path / "figures.jsonl"
    manifest = f"--manifest={tmp_path / 'videos' / 'train.csv'}"
    flags = ["data", manifest, "--videos=6", "--batch=2", "--workers=0", f"--json={out}"]
    flags += ["--frames=4", "--size=32"]
    assert bench.main([*flags, "--recipe=finetune", "--repeats=2"]) == 0
    assert bench.main([*flags, "--recipe=test"]) == 0
    finetune, test = (json.loads(line) for line in out.read_text().splitlines())
    assert finetune["augment_ms"] > 0 and test["augment_ms"] == 0
    assert test["crop_ms"] > 0
    for row in (finetune, test):
        assert row["mb_per_clip"] == pytest.approx((4 * 32 * 32 * 3 + 8) / 1e6)
    assert bench.main([*flags, "--recipe=test", "--repeats=2"]) == 1
    assert "repeats must be 1" in capsys.readouterr().err


def test_wrong_config_is_a_sentence(capsys):
    assert bench.main(["step", "--config=nowhere.py"]) == 1
    assert "no config at nowhere.py" in capsys.readouterr().err
