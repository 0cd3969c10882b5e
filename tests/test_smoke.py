"""Every config runs in miniature, as a user would try it: real files, real command, one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from vmae_jax.data.synthetic import generate
from vmae_jax.tools.bench import load_config

ROOT = pathlib.Path(__file__).parents[1]


def _recipes():
    """All recipes; those whose network and masks an earlier one shares are marked slow."""
    seen = set()
    for path in sorted((ROOT / "configs").glob("*.py")):
        config = load_config(f"{path}:smoke")
        # Classifiers of other sizes or classes differ in numbers alone.
        program = config.system
        if "masking" in config:
            program = config.model.to_json(), config.masking.to_json()
        yield pytest.param(path.stem, marks=[pytest.mark.slow] if program in seen else [])
        seen.add(program)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    generate(folder, num_videos=12)
    return folder


@pytest.mark.parametrize("name", list(_recipes()))
def test_smoke_of_every_config_trains_and_saves(name, videos, tmp_path):
    # Fewer steps than the miniature's own, to keep the default tests short.
    flags = ["--config.train.steps=3", "--config.data.workers=0"]
    draws = name in ("demo", "v2_vitg")  # one of each kind of target
    flags += ["--config.train.picture_every=3"] if draws else []
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "vmae_jax.main",
            f"--config={ROOT / 'configs' / name}.py:smoke",
            f"--config.data.manifest={videos / 'train.csv'}",
            f"--workdir={tmp_path}",
            *flags,
        ],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["skipped_total"] == 0
    # Predicting nothing of a normalised patch costs 1; fresh weights add a little to that.
    assert all(0.0 < row["loss"] < 2.0 for row in rows)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert (tmp_path / "pictures").is_dir() == draws
    if not draws:
        return
    with Image.open(tmp_path / "pictures" / "step_00000003.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 100
