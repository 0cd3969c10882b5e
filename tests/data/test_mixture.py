"""Mixtures: what an epoch holds, how each part is sampled, and files that are refused."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from vmae_jax.data.manifest import ManifestError
from vmae_jax.data.mixture import read_mixture
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.sources import open_source
from vmae_jax.data.video import write_video

FRAMES = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two lists of videos whose grey level tells the number of the frame: 4 of a/, 6 of b/."""
    root = tmp_path_factory.mktemp("mixture")
    frames = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    frames += (6 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
    for part, count in (("a", 4), ("b", 6)):
        (root / part / "videos").mkdir(parents=True)
        write_video(root / part / "videos" / "0.mp4", frames, fps=25, crf=4)
        for i in range(1, count):
            (root / part / "videos" / f"{i}.mp4").symlink_to("0.mp4")
        lines = [f"videos/{i}.mp4 {i % 2}\n" for i in range(count)]
        (root / part / "list.txt").write_text("".join(lines))
    return root


def write(root, text):
    path = root / "mixture.toml"
    path.write_text(text)
    return str(path)


TWO = """
[first]
manifest = "a/list.txt"
weight = 2
stride = 3

[second]
manifest = "b/list.txt"
weight = 0.5
"""


def epochs(pipeline, count):
    steps = pipeline.steps_per_epoch
    return [[name for _ in range(steps) for name in next(pipeline).names()] for _ in range(count)]


def test_an_epoch_takes_each_part_by_its_weight(root):
    options = PipelineOptions(write(root, TWO), frames=2, size=(8, 8), crop="none")
    with ClipPipeline(options, batch_videos=11, seed=0) as pipeline:
        assert pipeline.num_videos == 11  # 2 x 4 + 6 / 2
        first, second = epochs(pipeline, 2)
        state = pipeline.state()
    for epoch in (first, second):
        assert sorted(n for n in epoch if n.startswith("first/")) == sorted(
            f"first/videos/{i}.mp4" for i in (0, 1, 2, 3) * 2
        )
    halves = [{n for n in epoch if n.startswith("second/")} for epoch in (first, second)]
    assert halves[0] | halves[1] == {f"second/videos/{i}.mp4" for i in range(6)}
    with ClipPipeline(options, batch_videos=11, seed=0, start_step=1) as pipeline:
        assert epochs(pipeline, 1) == [second]
    heavier = write(root, TWO.replace("weight = 2", "weight = 3"))
    with (
        ClipPipeline(PipelineOptions(heavier, frames=2), batch_videos=11, seed=0) as pipeline,
        pytest.raises(ValueError, match="manifest_sha256 was"),
    ):
        ClipPipeline.check_state(state, pipeline.state())


def test_each_part_is_sampled_by_its_own_rule(root):
    text = TWO + 'sampling = "segments"\n'
    options = PipelineOptions(
        write(root, text), frames=4, stride=5, size=(8, 8), crop="none",
        stride_overrides=(("a/videos", 1),),
    )  # fmt: skip
    with ClipPipeline(options, batch_videos=11, seed=1) as pipeline:
        batch = next(pipeline)
    shown = np.round(batch.arrays["video"][:, :, 4, 4, 0] / 6).astype(int)
    for name, numbers in zip(batch.names(), shown, strict=True):
        if name.startswith("first/"):
            assert np.diff(numbers).tolist() == [3, 3, 3]
        else:
            assert (numbers // 10).tolist() == [0, 1, 2, 3]


def test_labels_are_kept_where_the_parts_share_their_classes(root):
    source = open_source(write(root, TWO))
    assert source.num_classes == 0 and source.class_names == ()
    assert source.fetch(1, PipelineOptions("m").limits).label == -1
    for part in ("a", "b"):
        (root / part / "classes.txt").write_text("run\nsit\n")
    source = open_source(write(root, TWO))
    for part in ("a", "b"):
        (root / part / "classes.txt").unlink()
    assert source.class_names == ("run", "sit")
    assert [source.fetch(i, PipelineOptions("m").limits).label for i in (0, 1, 5)] == [0, 1, 1]


def test_a_moved_mixture_is_the_same_one(root):
    source = open_source(write(root, TWO))
    (root / "below").mkdir()
    (root / "below" / "moved.toml").write_text("# moved\n" + TWO)
    moved = open_source(str(root / "below" / "moved.toml"), root=str(root))
    assert moved.sha256 == source.sha256 and moved.where(0) == source.where(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\nmanifest = x\n", r"mixture\.toml: not a TOML file: .*line 2"),
        ("", "names no parts"),
        ('manifest = "a/list.txt"', "stands outside of a table"),
        ("[a]\nweight = 1", "part a: the field manifest is missing"),
        ('[a]\nmanifest = "a/list.txt"\nwieght = 1', "part a: unknown field 'wieght'; the fields"),
        ('[a]\nmanifest = "a/list.txt"\nweight = -1', "weight must be a positive number.*got -1"),
        ('[a]\nmanifest = "a/list.txt"\nweight = true', "weight must be a positive number"),
        ('[a]\nmanifest = "a/list.txt"\nweight = 0.1', "takes none of its 4 videos"),
        ('[a]\nmanifest = "a/list.txt"\nstride = 1.5', "stride must be a positive integer"),
        ('[a]\nmanifest = "a/list.txt"\nsampling = "x"', "sampling must be one of dense, wind"),
        ('[a]\nmanifest = "a/list.txt"\nstyle = "x"', "style must be one of auto, csv"),
        ('[a]\nmanifest = "a/list.txt"\nframe_templates = ["x"]', "frame_templates must be a list"),
        ('[a]\nmanifest = "mixture.toml"', "a mixture cannot be a part"),
        ('[a]\nmanifest = "absent.txt"', r"mixture\.toml, part a: .*absent\.txt: the manifest ca"),
    ],
)
def test_a_bad_mixture_names_file_part_and_field(root, text, said):
    with pytest.raises(ManifestError, match=said):
        open_source(write(root, text))


def test_the_example_names_fields_that_exist(tmp_path):
    example = Path(__file__).parents[2] / "docs" / "examples" / "hybrid.toml"
    parts = tomllib.loads(example.read_text())
    assert list(parts) == ["k710", "ssv2", "ava", "webvid", "collected"]
    opened = {}

    def open_part(manifest, **fields):
        opened[manifest] = fields
        (tmp_path / "list.txt").write_text("a.mp4 0\n")
        return open_source(str(tmp_path / "list.txt"))

    mixture = read_mixture(str(example), root="/data", open_part=open_part)
    assert [part.overrides.get("stride") for part in mixture.parts] == [None, 2, None, None, None]
    assert opened["/data/ssv2/train.txt"]["root"] == "/data/ssv2/frames"
    assert opened["/data/ava/train.txt"]["templates"] == (("", "{folder}_{number:06d}.jpg"),)
    assert opened["/data/webvid_prepared"] == {}
