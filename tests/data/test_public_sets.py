"""Sets of TensorFlow Datasets, made and read without TensorFlow."""

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vmae_jax.data.manifest import ManifestError
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.sources import open_source
from vmae_jax.data.video import Limits, read_frames, write_video

COUNT = 5


def jpeg(level):
    file = io.BytesIO()
    Image.new("L", (16, 8), level).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def make(data_dir, name, features, example):
    """Prepares a set of five examples; returns its name for `config.data.manifest`."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": ((i, example(i)) for i in range(COUNT))}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return f"tfds:{name}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`pictures`: frame f of video v has the level 10 (v + f); `files`: H.264 with the number v."""
    root = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=["run", "sit"])
    sequence = tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3)))
    make(
        root, "pictures", {"frames": sequence, "label": label},
        lambda i: {"frames": [jpeg(10 * (i + f)) for f in range(6 + i)], "label": i % 2},
    )  # fmt: skip
    for i in range(COUNT):
        write_video(root / f"{i}.mp4", np.full((9, 16, 16, 3), 40 * i, np.uint8), fps=5)
    make(
        root, "files", {"video": tfds.features.Text(), "caption": tfds.features.Text()},
        lambda i: {"video": (root / f"{i}.mp4").read_bytes(), "caption": "x"},
    )  # fmt: skip
    make(root, "numbers", {"label": label}, lambda i: {"label": 0})
    return root


def numbers(source):
    """Which video of `pictures` or `files` each record is; TFDS shuffles them."""
    return [
        round(float(source.fetch(i, Limits()).read([0], Limits()).mean()) / 10)
        for i in range(len(source))
    ]


def test_pictures_are_read_with_their_labels(root):
    source = open_source("tfds:pictures", root=str(root))
    assert len(source) == COUNT and source.class_names == ("run", "sit")
    found = numbers(source)
    assert sorted(found) == list(range(COUNT))
    for i, number in enumerate(found):
        stored = source.fetch(i, Limits())
        assert stored.label == number % 2 and len(stored.pictures) == 6 + number
        frames = stored.read([5, 1], Limits()).astype(int)
        assert frames.shape == (2, 8, 16, 3)
        assert np.abs(frames[:, 4, 8, 0] - 10 * (number + np.array([5, 1]))).max() <= 1


def test_files_come_out_as_they_went_in(root):
    source = open_source("tfds:files:1.0.0@train[1:4]", root=str(root))
    assert len(source) == 3 and source.num_classes == 0
    for i, level in enumerate(numbers(source)):
        stored = source.fetch(i, Limits())
        assert stored.data == (root / f"{level // 4}.mp4").read_bytes() and stored.label == -1
        np.testing.assert_array_equal(stored.read([3], Limits()), read_frames(stored.data, [3]))


def test_splits_are_different_sets_and_the_same_split_is_the_same(root):
    whole, again, part = (
        open_source(f"tfds:files{split}", root=str(root)).sha256
        for split in ("", "@train", "@train[:2]")
    )
    assert whole == again != part


def test_batches_come_from_workers_without_tensorflow_even_where_it_is_installed(root):
    """In a process of its own that finds a TensorFlow, which ends whoever imports it."""
    code = """
        import sys

        from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions

        if __name__ == "__main__":
            options = PipelineOptions(
                "tfds:pictures", sys.argv[1], frames=2, stride=2, size=(8, 8), workers=1
            )
            with ClipPipeline(options, batch_videos=5, seed=0) as pipeline:
                names = next(pipeline).names()
            assert sorted(names) == [f"pictures[{i}]" for i in range(5)], names
            assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
    """
    (root / "read.py").write_text(textwrap.dedent(code))
    (root / "tensorflow").mkdir()
    (root / "tensorflow" / "__init__.py").write_text("import os\nos._exit(3)\n")
    script = [sys.executable, str(root / "read.py"), str(root)]  # its folder comes first
    subprocess.run(script, check=True)
    assert subprocess.run([sys.executable, "-c", "import tensorflow"], cwd=root).returncode == 3


def test_a_set_can_be_part_of_a_mixture(root, tmp_path):
    (tmp_path / "mixture.toml").write_text(
        f'[a]\nmanifest = "tfds:pictures"\nroot = "{root}"\nsampling = "segments"\n'
    )
    options = PipelineOptions(str(tmp_path / "mixture.toml"), frames=2, size=(8, 8))
    with ClipPipeline(options, batch_videos=5, seed=0) as pipeline:
        assert sorted(next(pipeline).names()) == [f"a/pictures[{i}]" for i in range(5)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tfds:absent", "tfds:absent: .*absent not found"),
        ("tfds:", "is not of the form tfds:NAME"),
        ("tfds:files@test", "tfds:files@test: .*test"),
        ("tfds:numbers", "expected one feature .*label: ClassLabel"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(root, name, said):
    with pytest.raises(ManifestError, match=said) as error:
        open_source(name, root=str(root))
    assert len(str(error.value).splitlines()) == 1


def test_the_video_feature_is_refused_in_words(root):
    path = root / "files" / "1.0.0" / "features.json"
    changed = path.read_text().replace("text_feature.Text", "video_feature.Video")
    copy = root / "moving" / "1.0.0"
    copy.mkdir(parents=True)
    for file in (root / "files" / "1.0.0").iterdir():
        (copy / file.name.replace("files", "moving")).write_bytes(file.read_bytes())
    (copy / "features.json").write_text(changed.replace('"text": {}', '"video": {}'))
    with pytest.raises(ManifestError, match=r"cannot be opened without TensorFlow"):
        open_source("tfds:moving", root=str(root))
