import csv
import io
import json
import os
import socket
import subprocess
import sys

import jax
import made
import numpy as np
import pytest
from PIL import Image

from vmae_jax import assemble, systems
from vmae_jax.data import transforms
from vmae_jax.data.video import read_frames
from vmae_jax.evals import passes
from vmae_jax.evals.confusion import confusion_picture
from vmae_jax.evals.multiview import Result, evaluate
from vmae_jax.tools import evaluate as tool
from vmae_jax.train.sharding import make_mesh

BAD = 4


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """11 videos, which no number of devices here divides, one of them unreadable."""
    return made.videos(tmp_path_factory.mktemp("videos"), 11, bad=(BAD,))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made.folder_of(tmp_path_factory.mktemp("weights"))


def outcome(listed, *, views=(2, 3), mesh=None, clips=8):
    config = passes.as_tested(made.config(), manifest=str(listed), root="", views=views)
    system = systems.build(config)
    params = system.init(jax.random.key(0))
    options = assemble.pipeline_options(config)
    with (
        jax.set_mesh(mesh or make_mesh(1, jax.devices()[:1])),
        passes.open_pass(options, clips=clips) as pipeline,
    ):
        return evaluate(system, params, pipeline)


def slow_views(path, stride=2, frames=4, side=16):
    """2 x 3 views of one video by the released rules, written out."""
    count = int(path.stem[1:]) + 9
    listed = list(range(0, count, stride))
    clips = []
    for start in (0, max(len(listed) - frames, 0)):
        chosen = [listed[min(start + k, len(listed) - 1)] for k in range(frames)]
        video = read_frames(str(path), chosen)
        height, width = video.shape[1:3]
        size = (side, side * width // height) if height <= width else (side * height // width, side)
        box = transforms.Box(0, 0, width, height)
        video = transforms.crop_resize(video, box, size, "bilinear")
        for third in range(3):
            down, along = (third * (length - side) // 2 for length in size)
            clips.append(video[:, down : down + side, along : along + side])
    return np.stack(clips)


def test_probabilities_are_the_mean_over_the_released_views(listed):
    result = outcome(listed)
    system = systems.build(made.config())
    params, logits = system.init(jax.random.key(0)), jax.jit(system.logits)
    for i in (0, 1, 10):
        views = slow_views(listed.parent / f"v{i}.mp4")
        expected = jax.nn.softmax(logits(params, {"video": views})).mean(axis=0)
        np.testing.assert_allclose(result.probabilities[i], expected, atol=2e-6)
    assert result.probabilities[:, 0].std() > 1e-3, "the model says the same of all"


def test_result_does_not_depend_on_devices_nor_batches(listed):
    one, eight = outcome(listed), outcome(listed, mesh=make_mesh(2), clips=20)
    np.testing.assert_allclose(one.probabilities, eight.probabilities, atol=2e-6)
    assert one.failures == eight.failures and list(one.failures) == [BAD]
    np.testing.assert_array_equal(one.labels, [i % 3 for i in range(11)])
    np.testing.assert_array_equal(one.labels, eight.labels)


def result_by_hand():
    shares = np.array([[6, 3, 1], [1, 8, 1], [2, 5, 3], [0, 0, 0], [5, 4, 1]], np.float32) / 10
    return Result(
        names=("a", "b", "c", "d", "e"),
        labels=np.array([0, 1, 2, 0, 1], np.int32),
        probabilities=shares,
        failures={3: "gone"},
        class_names=made.CLASSES,
    )


def test_figures_by_hand():
    result = result_by_hand()
    assert result.predictions.tolist() == [0, 1, 1, -1, 0]
    # a and b are right; d, which cannot be read, is wrong even where all classes count.
    assert result.metrics() == pytest.approx({"top1": 2 / 5, "top5": 4 / 5, "class_mean": 1 / 3})
    assert result.correct(2).tolist() == [True, True, True, False, True]
    assert result.class_accuracies() == {0: 0.5, 1: 0.5, 2: 0.0}
    assert result.group("^dark_") == {"top1": 0.5, "videos": 4}
    assert result.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    with pytest.raises(passes.EvaluationError, match="fits no class; names of classes: dark_run"):
        result.group("swim")


def test_table_has_a_line_per_video():
    rows = list(csv.DictReader(io.StringIO(result_by_hand().as_csv())))
    assert rows[1] == {
        "path": "b",
        "label": "dark_sit",
        "prediction": "dark_sit",
        "probability": "0.800000",
        "top5": "dark_sit:0.8000; dark_run:0.1000; tennis_serve:0.1000",
        "failure": "",
    }
    assert rows[3]["failure"] == "gone" and rows[3]["prediction"] == ""


def test_confusion_picture_shades_by_row():
    picture = confusion_picture(np.array([[4, 0], [5, 15]]), ("a", "b"))
    # The last 34 px before the margin of 8 are the second column; its rows are 0 and 3/4 dark.
    blank, dark = picture[-8 - 64, -8 - 30], picture[-8 - 30, -8 - 30]
    assert blank.tolist() == [255, 255, 255]
    np.testing.assert_allclose(dark, 255 + 0.75 * (np.array([8, 48, 107]) - 255), atol=1)
    assert confusion_picture(np.eye(400, dtype=int)).shape[0] > 1600


def command(model, listed, *flags):
    return tool.main([f"--weights={model}", f"--manifest={listed}", "--clips=8", *flags])


def test_command_writes_result_table_and_picture(model, listed, tmp_path, capsys):
    flags = ("--views=1,2", "--group=^dark_", f"--out={tmp_path / 'out'}")
    assert command(model, listed, *flags) == 0
    printed = capsys.readouterr().out
    assert "11 videos, 1 x 2 views" in printed and "v4.mp4" in printed
    facts = json.loads((tmp_path / "out" / "result.json").read_text())
    assert facts["videos"] == 11 and list(facts["failures"]) == ["v4.mp4"]
    assert facts["groups"]["^dark_"]["videos"] == 8 and len(facts["weights_sha256"]) == 64
    assert facts["config"]["data"]["crop"] == "views" and set(facts["classes"]) == set(made.CLASSES)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 12
    assert Image.open(tmp_path / "out" / "confusion.png").size[0] > 100


def test_what_cannot_be_tested_ends_in_a_sentence(model, listed, tmp_path, capsys):
    pretrained = made.folder_of(tmp_path / "pretrained", "videomae")
    assert command(pretrained, listed) == 1
    assert "has no classes to test" in capsys.readouterr().err
    (tmp_path / "bare.csv").write_text("path\nv0.mp4\n")
    assert command(model, tmp_path / "bare.csv", f"--root={listed.parent}") == 1
    assert "has no labels" in capsys.readouterr().err
    (tmp_path / "other.txt").write_text("v0.mp4 7\n")
    assert command(model, tmp_path / "other.txt", f"--root={listed.parent}") == 1
    assert "the set has 8 classes, but the model 3" in capsys.readouterr().err
    (tmp_path / "turned").mkdir()
    (tmp_path / "turned" / "list.txt").write_text("v0.mp4 0\n")
    (tmp_path / "turned" / "classes.txt").write_text("dark_run\ntennis_serve\ndark_sit\n")
    named = made.folder_of(tmp_path / "named", class_names=made.CLASSES)
    assert command(named, tmp_path / "turned" / "list.txt", f"--root={listed.parent}") == 1
    assert "class 1 is 'dark_sit' for the model and 'tennis_serve'" in capsys.readouterr().err
    (tmp_path / "none.txt").write_text("v4.mp4 1\n")
    assert command(model, tmp_path / "none.txt", f"--root={listed.parent}") == 1
    assert "none of the 1 videos can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_say_what_one_says(model, listed, tmp_path):
    flags = [f"--weights={model}", f"--manifest={listed}", "--views=2,3", "--clips=12"]
    assert tool.main([*flags, f"--out={tmp_path / 'one'}"]) == 0
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    where = [f"--coordinator=localhost:{port}", "--num_processes=2", "--platform=cpu"]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "vmae_jax.tools.evaluate", *flags, *where),
                *(f"--process_id={index}", f"--out={tmp_path / 'two'}"),
            ],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        )
        for index in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    assert one == two
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("one", "two")]
    rows = [list(csv.DictReader(io.StringIO(text))) for text in tables]
    for a, b in zip(*rows, strict=True):
        assert (a["prediction"], a["failure"]) == (b["prediction"], b["failure"])
        np.testing.assert_allclose(
            float(a["probability"] or 0), float(b["probability"] or 0), atol=3e-6
        )
