import json
import os

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.engine import to_theirs
from vmae_jax.convert.videomae import pretrain_table
from vmae_jax.data.video import probe, write_video
from vmae_jax.tools import reconstruct


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config, weights in the released names, and two videos."""
    folder = tmp_path_factory.mktemp("reconstruct")
    config = config_lib.pretrain_defaults()
    for stack in ("encoder", "decoder"):
        config.model[stack].update(width=16, depth=1, heads=2, remat="none")
    config.model.tubelet = (2, 8, 8)
    config.data.update(frames=4, size=(32, 32), stride=1)
    (folder / "config.json").write_text(config_lib.to_json(config))
    params = systems.build(config).init(jax.random.key(0))
    weights = to_theirs(params, pretrain_table((2, 8, 8)))
    save_file(weights, folder / "weights.safetensors")
    rng = np.random.default_rng(0)
    for name in ("one two.mp4", "b.mp4"):
        frames = rng.integers(0, 256, (12, 40, 56, 3), np.uint8)
        write_video(folder / name, frames, fps=12)
    (folder / "list.csv").write_text("path\none two.mp4\nb.mp4\n")
    return folder


def command(folder, out, *more):
    weights = f"--weights={folder / 'weights.safetensors'}"
    return reconstruct.main([f"--config={folder / 'config.json'}", weights, f"--out={out}", *more])


def test_videos_given_by_name(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    above = os.path.relpath(trained / "one two.mp4", tmp_path)  # begins with ..
    assert command(trained, tmp_path, above) == 0
    assert "reconstructions.png" in capsys.readouterr().out
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["00_one two.gif", "00_one two.mp4", "reconstructions.png"]
    assert probe(tmp_path / "00_one two.mp4").num_frames == 4
    with Image.open(tmp_path / "00_one two.gif") as gif:
        assert gif.n_frames == 4


def test_clips_of_a_list(trained, tmp_path):
    assert command(trained, tmp_path, f"--manifest={trained / 'list.csv'}", "--clips=2") == 0
    assert (tmp_path / "00_one two.mp4").is_file() and (tmp_path / "01_b.mp4").is_file()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"video": "nowhere.mp4"}, "does not exist"),
        ({"field": "optimiser"}, "config.optimiser is unknown"),
        ({"weights": "nowhere.safetensors"}, "no weights at"),
    ],
)
def test_bad_input_is_a_sentence_and_status_1(trained, tmp_path, capsys, damage, sentence):
    config = json.loads((trained / "config.json").read_text())
    if "field" in damage:
        config[damage["field"]] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = trained / damage.get("weights", "weights.safetensors")
    video = trained / damage.get("video", "b.mp4")
    flags = [f"--config={tmp_path / 'config.json'}", f"--weights={weights}", "--out=x", str(video)]
    assert reconstruct.main(flags) == 1
    assert sentence in capsys.readouterr().err
