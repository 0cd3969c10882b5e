import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.convert.engine import flatten
from vmae_jax.data import transforms
from vmae_jax.data.source import Source
from vmae_jax.data.video import read_frames, write_video
from vmae_jax.tools import extract

WINDOW, STRIDE, STEP = 4, 2, 5
COUNTS = {"a.mp4": 23, "deep/b.mp4": 12, "short.mp4": 5}
SIZES = {"a.mp4": (24, 40), "deep/b.mp4": (40, 24), "short.mp4": (32, 32)}
STARTS = {"a.mp4": [0, 5, 10, 15], "deep/b.mp4": [0, 5], "short.mp4": [0]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier with random weights, three videos and one that is none."""
    folder = tmp_path_factory.mktemp("extract")
    config = config_lib.finetune_defaults()
    config.model.encoder.update(width=16, depth=2, heads=2, remat="none", drop_path=0.0)
    config.model.update(tubelet=(2, 8, 8), dtype="float32", num_classes=3)
    config.data.update(frames=WINDOW, size=(16, 16), stride=STRIDE)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(config_lib.to_json(config))
    params = jax.device_get(systems.build(config).init(jax.random.key(0)))
    save_file(flatten(params), folder / "model" / "model.safetensors")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        frames = rng.integers(0, 256, (count, *SIZES[name], 3), np.uint8)
        write_video(folder / name, frames, fps=10)
    (folder / "bad.mp4").write_text("no video")
    lines = "a.mp4 2\nbad.mp4 0\ndeep/b.mp4 1\nshort.mp4 0\n"
    (folder / "all.txt").write_text(lines)
    (folder / "good.txt").write_text(lines.replace("bad.mp4 0\n", ""))
    return folder


@pytest.fixture(scope="module")
def model(made):
    return assemble.open_model(str(made / "model"))


def command(made, out, *more, listing="good.txt"):
    flags = [f"--weights={made / 'model'}", f"--out={out}", f"--step={STEP}", "--batch=3"]
    return extract.main([*flags, f"--manifest={made / listing}", *more])


def note(out):
    return json.loads((out / extract.NOTE).read_text())


def clips_of(made, name):
    """The windows of a video, put together without the code that slides."""
    index = [[s + i * STRIDE for i in range(WINDOW)] for s in STARTS[name]]
    index = np.minimum(index, COUNTS[name] - 1)
    frames = read_frames(made / name, lambda n, _: range(n))
    (cropped,) = transforms.view_crops(frames, size=(16, 16), crops=1, resample="bilinear")
    return index, cropped[index]


def test_a_list_with_a_bad_video(made, model, tmp_path, capsys):
    assert command(made, tmp_path, listing="all.txt") == 1
    printed = capsys.readouterr().out
    assert "3 videos, 7 windows" in printed and "3 of 4 videos are there" in printed
    assert "bad.mp4: not a readable video" in printed
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert files == ["a.mp4.npz", "deep/b.mp4.npz", "extract.json", "short.mp4.npz"]
    for label, name in ((2, "a.mp4"), (1, "deep/b.mp4"), (0, "short.mp4")):
        index, clips = clips_of(made, name)
        with np.load(tmp_path / f"{name}.npz") as found:
            np.testing.assert_array_equal(found["frames"], index)
            np.testing.assert_allclose(found["start_s"], index[:, 0] / 10, atol=1e-6)
            np.testing.assert_allclose(found["end_s"], index[:, -1] / 10, atol=1e-6)
            assert found["padded"].tolist() == [name == "short.mp4"] * len(index)
            assert found["label"] == label
            tokens = model.system.encoder.tokens(model.params, {"video": clips}, 2)
            # Rows of a batch of other size are summed in another order.
            np.testing.assert_allclose(found["features"], tokens.mean(axis=1), rtol=0, atol=1e-5)
    facts = note(tmp_path)
    assert facts["weights_sha256"] == model.sha256
    assert facts["counts"] == {"videos": 4, "finished": 3, "failed": 1}
    assert list(facts["failures"]) == ["bad.mp4"]
    assert facts["settings"]["stride"] == STRIDE and facts["settings"]["layer"] == 2
    assert facts["config"]["data"]["frames"] == WINDOW


def test_hdf5_of_a_layer_before_the_last(made, model, tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    flags = ["--layer=1", "--pooling=slot", "--format=hdf5", "--dtype=float16"]
    assert command(made, tmp_path, *flags) == 0
    index, clips = clips_of(made, "a.mp4")
    tokens = np.asarray(model.system.encoder.tokens(model.params, {"video": clips}, 1))
    slots = tokens.reshape(4, 2, 4, 16).mean(axis=2)  # 2 slots of 2 x 2 tokens
    with h5py.File(tmp_path / "features.h5", "a") as file:
        group = file["a.mp4"]
        assert group.attrs["complete"] and group["features"].dtype == np.float16
        np.testing.assert_allclose(group["features"], slots, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(group["frames"], index)
        assert len(file["deep/b.mp4"]["padded"]) == 2
        del file["short.mp4"].attrs["complete"]
        del file["short.mp4"]["label"]  # as a kill may leave it
    assert command(made, tmp_path, *flags) == 0
    assert note(tmp_path)["this_run"]["videos"] == 1
    with h5py.File(tmp_path / "features.h5") as file:
        assert file["short.mp4"].attrs["complete"] and file["short.mp4"]["label"][()] == 0
    (tmp_path / "features.h5").write_bytes(b"half a file")
    assert command(made, tmp_path, *flags) == 2
    assert "Delete it and begin again" in capsys.readouterr().err


def test_the_preset_of_temporal_action_detection(made, tmp_path):
    """Frames squeezed bilinearly, on a scale from 0 to 1 without mean and deviation, to the head"""
    video = made / "a.mp4"
    flags = [f"--weights={made / 'model'}", f"--out={tmp_path}", "--preset=tad", "--step=3"]
    assert extract.main([*flags, str(video)]) == 0
    found = dict(np.load(tmp_path / "a.mp4.npz"))
    starts = list(range(0, 23 - 15, 3))
    assert found["frames"].tolist() == [list(range(s, s + 16)) for s in starts]
    frames = read_frames(video, lambda n, _: range(n)).astype(float)
    for axis, pixels in ((1, 24), (2, 40)):  # each output pixel between its two neighbours
        place = np.clip((np.arange(16) + 0.5) * pixels / 16 - 0.5, 0, pixels - 1)
        below, share = np.floor(place).astype(int), place % 1
        above = np.minimum(below + 1, pixels - 1)
        share = share.reshape([-1 if a == axis else 1 for a in range(4)])
        frames = frames.take(below, axis) * (1 - share) + frames.take(above, axis) * share
    squeezed = np.floor(frames + 0.5).astype(np.uint8)
    overrides = {"data.frames": 16, "data.mean": (0.0,) * 3, "data.std": (1.0,) * 3}
    model = assemble.open_model(str(made / "model"), **overrides)
    expected = model.system.encoder.pooled(model.params, {"video": squeezed[found["frames"]]})
    # A pixel in a million is rounded to the other side in float32.
    np.testing.assert_allclose(found["features"], expected, rtol=0, atol=1e-3)
    assert np.abs(np.diff(found["features"], axis=0)).max() > 0.05


def test_going_on_where_a_run_was_ended(made, tmp_path, monkeypatch, capsys):
    written, write_array = [], np.lib.format.write_array

    def dies(file, array, **options):
        written.append(array)
        if len(written) == 7:  # in the middle of the second video
            raise KeyboardInterrupt
        write_array(file, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", dies)
    assert command(made, tmp_path) == 130
    monkeypatch.setattr(np.lib.format, "write_array", write_array)
    assert len(list(tmp_path.rglob("*.npz"))) == 1 and not list(tmp_path.rglob("*.partial"))
    assert command(made, tmp_path) == 0
    assert note(tmp_path)["this_run"]["videos"] == 2
    assert note(tmp_path)["counts"] == {"videos": 3, "finished": 3, "failed": 0}
    capsys.readouterr()
    assert command(made, tmp_path, "--pooling=slot") == 2
    assert "settings.pooling was 'mean' and is 'slot'" in capsys.readouterr().err
    assert command(made, tmp_path, listing="all.txt") == 2
    assert "manifest_sha256 was" in capsys.readouterr().err


class Names(Source):
    def __init__(self, *names):
        self._names = names

    def __len__(self):
        return len(self._names)

    def name(self, i):
        return self._names[i]

    where = name

    def fetch(self, i, limits):
        raise NotImplementedError


def test_names_of_files_stay_in_the_folder_and_differ():
    source = Names("a.mp4", "b/a.mp4", "a.mp4", "../c.mp4", "/d.mp4", "gs://e/f.mp4")
    assert extract.file_names(source) == [
        *("a.mp4", "b/a.mp4", "a.mp4#2", "_/c.mp4", "d.mp4", "gs:/e/f.mp4")
    ]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--layer=3"], "layer 3: the encoder has the blocks 1 to 2"),
        (["--layer=1", "--pooling=head"], 'pooling "head" is of the last layer'),
        (["--window=3"], "frames=3 is not a positive multiple of 2"),
        (["--format=hdf5"], "pip install 'vmae_jax[features]'"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    made, tmp_path, capsys, monkeypatch, flags, sentence
):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert command(made, tmp_path, *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--preset=tad", "--window=8", "a.mp4"], "--preset=tad decides --window"),
        ([], "give either video files or --manifest"),
        (["--step=0", "a.mp4"], "argument --step: '0'; give a whole number from 1 on"),
        (["--manifest=x.csv", "a.mp4"], "give either video files or --manifest"),
    ],
)
def test_flags_that_contradict_each_other(capsys, flags, sentence):
    with pytest.raises(SystemExit) as ended:
        extract.main(["--weights=w", "--out=o", *flags])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
