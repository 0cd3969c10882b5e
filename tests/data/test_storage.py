"""Bytes by path; a bucket is played by fsspec's memory."""

import fsspec
import numpy as np
import pytest
from PIL import Image

from vmae_jax.data import storage
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.sources import open_source
from vmae_jax.data.video import Limits, VideoError, write_video
from vmae_jax.errors import UserError


@pytest.fixture
def bucket(tmp_path):
    """A list, class names, a video and a folder of pictures, in a bucket and locally."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames, fps=25)
    (tmp_path / "list.txt").write_text("videos/a.mp4 1\n")
    (tmp_path / "classes.txt").write_text("run\nsit\n")
    (tmp_path / "pictures.txt").write_text("pictures 0 12\n")
    (tmp_path / "pictures").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "pictures" / f"img_{i:05d}.jpg")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["list.txt", "pictures.txt"])
def test_a_list_in_a_bucket_gives_the_batches_of_the_local_one(bucket, tmp_path, name):
    options = {"frames": 4, "stride": 2, "size": (16, 16)}
    batches = []
    for folder in (bucket, str(tmp_path)):
        opened = PipelineOptions(f"{folder}/{name}", **options)
        with ClipPipeline(opened, batch_videos=1, seed=0) as pipeline:
            batches.append(next(pipeline).arrays)
            assert pipeline.class_names == ("run", "sit")
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])


def test_what_is_missing_or_too_large_is_said(bucket):
    source = open_source(f"{bucket}/list.txt")
    assert source.where(0) == "memory://bucket/videos/a.mp4"
    with pytest.raises(VideoError, match=r"memory://bucket/videos/a\.mp4: exceeds the limit of 99"):
        source.fetch(0, Limits(max_bytes=99))
    fsspec.filesystem("memory").rm("/bucket/videos/a.mp4")
    with pytest.raises(VideoError, match="the file does not exist"):
        source.fetch(0, Limits())
    with pytest.raises(UserError, match=r"bucket/no\.csv: the manifest cannot be read"):
        open_source(f"{bucket}/no.csv")


def test_a_bucket_without_its_client_names_the_extra():
    with pytest.raises(UserError, match=r"nothing://b/list\.csv: .*vmae_jax\[gcs\]"):
        open_source("nothing://b/list.csv")


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/d/", "a/b.mp4", "/d/a/b.mp4"),
        ("/", "a.mp4", "/a.mp4"),
        ("", "a.mp4", "a.mp4"),
        ("gs://b", "a.mp4", "gs://b/a.mp4"),
        ("gs://b/d", "/x/a.mp4", "/x/a.mp4"),
        ("/d", "s3://b/a.mp4", "s3://b/a.mp4"),
    ],
)
def test_names_are_joined_as_paths_and_urls(folder, name, joined):
    assert storage.join(folder, name) == joined


def test_the_folder_of_a_list_is_known_locally_and_in_buckets():
    assert storage.parent("gs://b/d/list.csv") == "gs://b/d"
    assert storage.parent("list.csv") == "."
