"""A small set of videos and small models for the tests of evaluation."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.engine import flatten
from vmae_jax.data.video import write_video

CLASSES = ("dark_run", "dark_sit", "tennis_serve")


def videos(folder: pathlib.Path, count: int, *, bad: tuple[int, ...] = ()) -> pathlib.Path:
    """Writes `count` noisy videos whose brightness tells the class, labels in turn; the list."""
    rng, lines = np.random.default_rng(0), []
    for i in range(count):
        label, size = i % 3, ((24, 40), (40, 24), (32, 32))[i % 3]
        frames = rng.integers(60 * label, 60 * label + 100, (9 + i, *size, 3), np.uint8)
        write_video(folder / f"v{i}.mp4", frames, fps=10)
        if i in bad:
            (folder / f"v{i}.mp4").write_text("no video")
        lines.append(f"v{i}.mp4 {label}\n")
    (folder / "list.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder / "list.txt"


def config(system: str = "classify") -> ConfigDict:
    """A recipe that compiles in a second."""
    made = config_lib.DEFAULTS[system]()
    stacks = ("encoder", "decoder") if system == "videomae" else ("encoder",)
    for stack in stacks:
        made.model[stack].update(width=16, depth=2, heads=2, remat="none", drop_path=0.0)
    made.model.update(tubelet=(2, 8, 8), dtype="float32")
    made.data.update(frames=4, size=(16, 16), stride=2, workers=0)
    if system == "classify":
        made.model.update(num_classes=3, head_scale=20.0)  # opinions differ from clip to clip
    config_lib.validate(made)
    return made


def folder_of(
    folder: pathlib.Path, system: str = "classify", class_names: tuple[str, ...] = ()
) -> pathlib.Path:
    """Writes random weights with their recipe, as tools/convert would."""
    folder.mkdir(parents=True, exist_ok=True)
    made = config(system)
    if class_names:
        made.model.class_names = class_names
    params = jax.device_get(systems.build(made).init(jax.random.key(0)))
    save_file(flatten(params), folder / "model.safetensors")
    (folder / "config.json").write_text(config_lib.to_json(made))
    return folder
