"""Videos stored as numbered pictures."""

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data import folders
from vmae_jax.data.folders import read_folder
from vmae_jax.data.manifest import Clip
from vmae_jax.data.video import Limits, VideoError


def make_folder(folder, template, numbers, size=(20, 10)):
    folder.mkdir(parents=True)
    for number in numbers:
        name = template.format(number=number, folder=folder.name)
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)
    return str(folder)


def reds(frames):
    return frames[:, 0, 0, 0].tolist()


def test_frame_i_is_the_picture_numbered_first_plus_i(tmp_path):
    path = make_folder(tmp_path / "7", "img_{number:05d}.png", range(1, 9))
    clip = Clip(path, 0, None, None, first_frame=3, total_frames=6)
    rules = (("", "img_{number:05d}.png"),)
    frames = read_folder(clip, lambda n, _: [0, n - 1, 0], templates=rules)
    assert frames.shape == (3, 10, 20, 3) and reds(frames) == [3, 8, 3]


def test_the_first_matching_template_counts(tmp_path):
    rules = (("ava/", "{folder}_{number:06d}.png"), ("ssv2/", "{:05}.png"))
    ava = make_folder(tmp_path / "ava" / "abc", "{folder}_{number:06d}.png", [0, 1])
    ssv2 = make_folder(tmp_path / "ssv2" / "12", "{number:05d}.png", [0, 1])
    for path in (ava, ssv2):
        assert reds(read_folder(Clip(path, -1, None, None, 0, 2), [1], templates=rules)) == [1]
    other = make_folder(tmp_path / "other" / "1", "{number}.png", [0])
    with pytest.raises(VideoError, match="no frame template matches"):
        read_folder(Clip(other, -1, None, None, 0, 1), [0], templates=rules)


@pytest.mark.parametrize(
    ("path", "is_ava"),
    [
        *(("/d/AVA/abc", True), ("ava/abc", True), ("/d/AVA2.2/frames/abc", True)),
        *(("/d/AVAv2.2/abc", True), ("/d/ava_frames/abc", True), ("/d/set/AVA", True)),
        *(("/d/java/abc", False), ("/lava/abc", False), ("/d/avatar/abc", False)),
        *(("/data/available/abc", False), ("/d/ssv2/1", False)),
    ],
)
def test_the_default_templates_know_ava_by_a_part_of_the_path(path, is_ava):
    want = "{folder}_{number:06d}.jpg" if is_ava else "img_{number:05d}.jpg"
    assert folders._template(path, folders.DEFAULT_TEMPLATES) == want


def test_missing_damaged_and_large_pictures_are_named(tmp_path):
    rules = (("", "{number}.png"),)
    path = make_folder(tmp_path / "a", "{number}.png", range(3))
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG no more")
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "2.png")
    clip = Clip(path, -1, None, None, 0, 4)
    for chosen, reason in (
        ([3], "3.png does not exist"),
        ([1], "1.png cannot be read"),
        ([0, 2], "the picture size changes"),
    ):
        with pytest.raises(VideoError, match=reason):
            read_folder(clip, chosen, templates=rules)
    with pytest.raises(VideoError, match="exceeds 50 pixels"):
        read_folder(clip, [0], templates=rules, limits=Limits(max_pixels=50))
    with pytest.raises(IndexError, match=r"usable are 0\.\.3"):
        read_folder(clip, [4], templates=rules)


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    path = make_folder(tmp_path / "a", "{number}.png", [])
    for number, mode in enumerate(("L", "RGBA", "P")):
        Image.new(mode, (8, 8)).save(tmp_path / "a" / f"{number}.png")
    frames = read_folder(
        Clip(path, -1, None, None, 0, 3), [0, 1, 2], templates=(("", "{number}.png"),)
    )
    np.testing.assert_array_equal(frames, np.zeros((3, 8, 8, 3), np.uint8))
