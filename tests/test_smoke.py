"""Every config runs in miniature, as a user would try it: real files, real command, one device."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from PIL import Image

from vmae_jax import assemble, systems
from vmae_jax.convert import sources
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import flatten, to_theirs
from vmae_jax.convert.export import save_arrays, save_released
from vmae_jax.data.moving_shapes import CLASSES
from vmae_jax.data.synthetic import generate
from vmae_jax.tools.bench import load_config

ROOT = pathlib.Path(__file__).parents[1]


def _recipes():
    """All recipes; those of images, and all but the smallest of a kind, are marked slow."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    configs = {name: load_config(f"{ROOT / 'configs' / name}.py:smoke") for name in names}
    seen = set()
    for name in sorted(names, key=lambda name: configs[name].model.encoder.width):
        program = _program(configs[name])
        slow = program in seen or "_image_" in name
        yield pytest.param(name, marks=[pytest.mark.slow] if slow else [])
        seen.add(program)


def _program(config):
    """What tells kinds of recipes apart: everything but sizes and shares."""
    if "masking" not in config:
        return config.system, config.model.architecture, config.model.positions
    fields = config.model.to_dict()
    sizeless = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    masks = config.masking.to_dict()
    masks |= {stack: masks[stack][0] for stack in ("encoder", "decoder") if stack in masks}
    return json.dumps([config.system, sizeless, masks], sort_keys=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    generate(folder, num_videos=12)
    return folder


def teacher(config, folder):
    """Writes a teacher that nobody has trained."""
    if "num_classes" in config.model:
        config.model.num_classes = len(CLASSES)
    system = systems.build(config)
    params = jax.device_get(jax.jit(system.init_frozen)(jax.random.key(0)))
    if config.system == "umt":  # in CLIP's own names
        named = to_theirs(params, clip_table(tuple(config.teacher.tubelet)))
        folder.mkdir()
        save_arrays(folder / "tower.safetensors", named, {})
        return folder / "tower.safetensors"
    described = assemble.teacher_config(config)
    return save_released(folder, flatten(params), described, licence="none")[0]


@pytest.mark.parametrize("name", list(_recipes()))
def test_smoke_of_every_config_trains_and_saves(name, videos, tmp_path):
    # Fewer steps and videos than the miniature's own, to keep the default tests short.
    flags = ["--config.train.steps=3", "--config.data.workers=0"]
    flags += [] if name.endswith(("_ft", "_distill")) else ["--config.train.batch_videos=1"]
    # One of each kind of target, and one with a teacher in its pictures.
    draws = name in ("demo", "v2_vitg", "umt_b_k710")
    flags += ["--config.train.picture_every=3"] if draws else []
    config = load_config(str(ROOT / "configs" / f"{name}.py:smoke"))
    if "teacher" in config:
        flags += [f"--config.teacher.weights={teacher(config, tmp_path / 'teacher')}"]
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
    # Predicting nothing of a normalised patch costs 1, guessing among ten classes log(10); fresh
    # weights add a little to that. Classifiers agree as long as both know nothing, and directions
    # that have nothing in common are 2 apart, more or less.
    low, high = (-1e-6, 1.0) if name.endswith("_distill") else (0.0, 2.0)
    high = 2.2 if config.system == "umt" else high
    high = math.log(10) + 0.3 if name.endswith("_ft") else high
    assert all(low < row["loss"] < high for row in rows)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    if "teacher" in config:
        saved = json.loads((tmp_path / "config.json").read_text())["teacher"]
        assert saved["sha256"] == sources.sha256(saved["weights"])
    assert (tmp_path / "pictures").is_dir() == draws
    if not draws:
        return
    with Image.open(tmp_path / "pictures" / "step_00000003.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 100
