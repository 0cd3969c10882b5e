"""Progressive training as commands, each from the weights of the one before: V2's and UMT's."""

import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax import assemble, main, systems
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import to_theirs
from vmae_jax.data.synthetic import generate
from vmae_jax.tools import convert
from vmae_jax.tools.bench import load_config

# Recipes of three stages, and why a classifier leaves out what pretraining predicts with.
V2 = "v2_vitb", "v2_vitb_k710_ft", "v2_vitb_k400_ft", "the classifier has no decoder"
UMT = "umt_b_k710", "umt_b_k710_ft", "umt_b_k400_ft", "the classifier is not aligned with a teacher"
SMALL = {"workers": 0, "frames": 4, "stride": 2, "size": (32, 32)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("videos"), num_videos=40)


def train(recipe, videos, workdir, configs, **fields):
    config = load_config(str(configs / f"{recipe}.py:smoke"))
    config.data.update(manifest=str(videos / "train.csv"), **SMALL)
    config.train.update(steps=2, log_every=1, checkpoint_every=2, batch_videos=8)  # 8 devices
    config.model.dtype = "float32"
    config.eval.update(every=2, manifest=str(videos / "val.csv"))
    if "probes" in config.eval:
        config.eval.probes = ("knn",)
    for name, value in fields.items():
        config[name] = value
    if "teacher" in config:
        config.teacher.size = SMALL["size"]
        config.teacher.weights = tower(config, workdir.with_name("tower.safetensors"))
    return main.run(config, str(workdir))


def tower(config, path):
    """Writes an image tower that nobody has trained."""
    params = jax.device_get(jax.jit(systems.build(config).init_frozen)(jax.random.key(0)))
    save_file(to_theirs(params, clip_table(tuple(config.teacher.tubelet))), path)
    return str(path)


def evaluated(workdir):
    """The row of the evaluation after step 2, beside that of the step's loss."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if "eval_s" in row)
    assert row["step"] == 2 and "loss" not in row
    return row


@pytest.mark.parametrize("chain", [V2, pytest.param(UMT, marks=pytest.mark.slow)])
def test_each_stage_begins_with_the_weights_of_the_one_before(
    chain, videos, tmp_path, request, caplog
):
    configs, (first, second, third, left_out) = request.config.rootpath / "configs", chain
    pretrained, post, tuned = (tmp_path / name for name in ("pretrain", "post", "finetune"))
    assert train(first, videos, pretrained, configs).step == 2
    assert 0 <= evaluated(pretrained)["knn_top1"] <= 1
    with caplog.at_level(logging.INFO, logger="vmae_jax"):
        train(second, videos, post, configs, init_from=str(pretrained))
    assert f"ignored ({left_out})" in caplog.text
    assert "4 kept at initial values" in caplog.text
    row = evaluated(post)
    assert row["val_top1"] <= row["val_top5"] and row["val_failures"] == 0
    assert 0 < row["eval_share"] < 1
    written = json.loads((post / "config.json").read_text())
    assert written["model"]["num_classes"] == 10  # of the data, not of a list
    assert written["model"]["class_names"][0] == "left"

    # The next set has three of the ten classes, in another order.
    label_map, mapped = tmp_path / "map.json", tmp_path / "mapped"
    label_map.write_text("[7, 0, 3]")
    convert.main([str(post), f"--out={mapped}", f"--label_map={label_map}"])
    rows = ["path,label"]
    for line in (videos / "train.csv").read_text().splitlines()[1:]:
        path, label = line.split(",")
        rows += [f"{path},{[7, 0, 3].index(int(label))}"] if int(label) in (7, 0, 3) else []
    three = tmp_path / "three.csv"  # beside no list of ten names
    three.write_text("\n".join(rows) + "\n")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vmae_jax"):
        config = load_config(str(configs / f"{third}.py:smoke"))
        config.data.update(manifest=str(three), root=str(videos), **SMALL)
        config.train.update(steps=1, log_every=1, batch_videos=8)
        config.optim.update(base_lr=0.0, min_lr=0.0)
        config.model.dtype, config.init_from = "float32", str(mapped)
        main.run(config, str(tuned))
    assert json.loads((tuned / "config.json").read_text())["model"]["num_classes"] == 3
    assert "kept at initial values" not in caplog.text
    before, after = assemble.open_model(str(post)), assemble.open_model(str(tuned))
    kernel = np.asarray(before.params["head"]["kernel"])
    np.testing.assert_array_equal(after.params["head"]["kernel"], kernel[:, [7, 0, 3]])
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], before.params["encoder"])
