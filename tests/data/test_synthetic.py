import csv
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_jax.data import moving_shapes
from vmae_jax.data.moving_shapes import CLASSES, FRAME_RATES, NUM_FRAMES, SIZES, draw_video
from vmae_jax.data.synthetic import generate, video_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("synthetic") / "set", num_videos=12, seed=3)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _weight_centre(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns the centre (x, y) of what differs from the background."""
    weight = np.abs(frame.astype(float) - background).sum(-1)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_manifests_name_every_video_once_with_its_class(folder):
    rows = _rows(folder / "train.csv") + _rows(folder / "val.csv")
    assert [row["path"] for row in rows] == [video_path(index) for index in range(12)]
    assert len(_rows(folder / "val.csv")) == 1
    names = (folder / "classes.txt").read_text().splitlines()
    assert names == list(CLASSES)
    for row in rows:
        assert (folder / row["path"]).is_file()
        assert Path(row["path"]).parent.name == names[int(row["label"])]


def test_files_are_h264_and_hold_what_was_drawn(folder):
    frames, fps = draw_video(1, seed=3)
    with av.open(str(folder / video_path(1))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == fps
    decoded = _decode(folder / video_path(1))
    assert decoded.shape == frames.shape
    # Compression and halved colour resolution blur edges; a wrong frame would be far off.
    assert np.abs(decoded.astype(int) - frames).mean(axis=(1, 2, 3)).max() < 5
    assert np.abs(decoded[0].astype(int) - frames[-1]).mean() > 5


def test_videos_differ_in_size_rate_and_length():
    scenes = [
        moving_shapes._draw_scene(index, np.random.default_rng([0, index])) for index in range(80)
    ]
    assert {scene.size for scene in scenes} == set(SIZES)
    assert {scene.fps for scene in scenes} == set(FRAME_RATES)
    lengths = {scene.num_frames for scene in scenes}
    assert NUM_FRAMES[0] <= min(lengths) < max(lengths) <= NUM_FRAMES[1]


def test_drawings_depend_on_seed_and_number_only():
    frames, fps = draw_video(5, seed=3)
    draw_video(6, seed=3)
    again, fps_again = draw_video(5, seed=3)
    assert fps == fps_again
    np.testing.assert_array_equal(frames, again)
    other, _ = draw_video(5, seed=4)
    assert frames.shape != other.shape or not np.array_equal(frames, other)


def test_workers_write_what_one_process_writes(folder, tmp_path):
    other = generate(tmp_path / "set", num_videos=4, seed=3, num_workers=2)
    for index in range(4):
        a, b = (_decode(root / video_path(index)).astype(int) for root in (folder, other))
        # The drawings are equal to the bit; x264's assembly may round a block differently.
        assert np.abs(a - b).mean() < 0.5


def test_a_broken_run_goes_on_and_keeps_finished_files(tmp_path):
    out = generate(tmp_path / "set", num_videos=3, seed=3)
    kept, lost = out / video_path(0), out / video_path(2)
    kept.write_bytes(b"left alone")
    lost.unlink()
    (out / "train.csv").unlink()
    generate(out, num_videos=3, seed=3)
    assert kept.read_bytes() == b"left alone"
    assert len(_decode(lost)) == len(draw_video(2, seed=3)[0])
    assert len(_rows(out / "train.csv")) == 2
    assert not [path for path in out.rglob(".*") if "partial" in path.name]


def test_a_folder_of_another_seed_is_refused(tmp_path):
    generate(tmp_path, num_videos=2, seed=0)
    with pytest.raises(ValueError, match="another folder"):
        generate(tmp_path, num_videos=2, seed=1)


def test_one_video_is_not_a_set(tmp_path):
    with pytest.raises(ValueError, match="num_videos=1"):
        generate(tmp_path, num_videos=1)


def _lone_circle(motion: str, *, phase: float) -> moving_shapes._Scene:
    shape = moving_shapes._Shape(
        kind="circle",
        radius=0.2,
        fill=(np.ones(3), np.ones(3)),
        stripes=0.0,
        angle=0.0,
        phase=phase,
        offset=0.5,
    )
    return moving_shapes._Scene(
        motion=motion,
        size=(128, 128),
        fps=10,
        num_frames=2,
        speed=0.5,
        shapes=(shape,),
        background=np.zeros((128, 128, 3), np.float32),
    )


@pytest.mark.parametrize(
    ("motion", "change"),  # signs of (x, y, scale, angle) a tenth of a cycle later; y points down
    [
        ("left", (-1, 0, 0, 0)),
        ("right", (1, 0, 0, 0)),
        ("up", (0, -1, 0, 0)),
        ("down", (0, 1, 0, 0)),
        ("clockwise", (0, 0, 0, 1)),
        ("counterclockwise", (0, 0, 0, -1)),
        ("grow", (0, 0, 1, 0)),
        ("shrink", (0, 0, -1, 0)),
        ("bounce", (0, -1, 0, 0)),
        ("orbit", (-1, 1, 0, 0)),  # from the right end downwards: clockwise
    ],
)
def test_classes_move_as_they_are_called(motion, change):
    scene = _lone_circle(motion, phase=0.01)
    before = moving_shapes._pose(scene, scene.shapes[0], 0.0)
    after = moving_shapes._pose(scene, scene.shapes[0], 0.2)
    moved = [getattr(after, name) - getattr(before, name) for name in ("x", "y", "scale", "angle")]
    np.testing.assert_array_equal(np.sign(np.round(moved, 9)), change)


def test_a_growing_angle_turns_from_right_to_down():
    x, y = np.array([0.95, 0.0]), np.array([0.0, 0.95])  # a point on the right, one below
    np.testing.assert_array_equal(
        moving_shapes._distance("sparkle", x, y, 0.0) < 0, [True, True]
    )  # four points: both are inside
    np.testing.assert_array_equal(moving_shapes._distance("triangle", x, y, 0.0) < 0, [True, False])
    np.testing.assert_array_equal(
        moving_shapes._distance("triangle", x, y, np.pi / 2) < 0, [False, True]
    )


def test_outlines_are_covered_by_part():
    # Half a pixel inside, on the line, half a pixel outside.
    np.testing.assert_array_equal(
        moving_shapes._cover(np.array([-0.5, 0.0, 0.25, 0.5])), [1, 0.5, 0.25, 0]
    )


def test_what_is_drawn_is_where_the_pose_says():
    scene = _lone_circle("right", phase=0.5)
    frame = scene.background.copy()
    pose = moving_shapes._pose(scene, scene.shapes[0], 0.0)
    moving_shapes._paint(frame, scene.shapes[0], pose)
    centre = _weight_centre(frame * 255, 0 * frame)
    np.testing.assert_allclose(centre + 0.5, [64, 64], atol=0.01)  # pixel centres lie at halves
    # A white disc of radius 0.9 * 0.2 * 128 px.
    np.testing.assert_allclose(frame[..., 0].sum(), np.pi * (0.9 * 0.2 * 128) ** 2, rtol=0.002)
