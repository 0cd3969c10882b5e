"""Batches depend on seed and step only; bad videos, dead and stuck workers are dealt with."""

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data import clips as clips_module
from vmae_jax.data import guard
from vmae_jax.data import pipeline as pipeline_module
from vmae_jax.data.pipeline import (
    ClipPipeline,
    PipelineError,
    PipelineOptions,
    WorkerError,
    choose_frames,
    read_clip,
    take_crops,
)
from vmae_jax.data.sampling import dense_views
from vmae_jax.data.transforms import Box, crop_resize, view_crops
from vmae_jax.data.video import VideoError, read_frames, write_video

NUM_VIDEOS = 11


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Small videos of different size and length; label i % 3."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(NUM_VIDEOS):
        height, width, count = 40 + 4 * (i % 3), 48 + 4 * (i % 2), 6 + 5 * i
        noise = rng.integers(0, 256, (count, height // 4, width // 4, 3), np.uint8)
        write_video(root / f"v{i}.mp4", noise.repeat(4, 1).repeat(4, 2), fps=25, gop=8)
        lines.append(f"v{i}.mp4 {i % 3}\n")
    (root / "list.txt").write_text("".join(lines))
    return root


def options(videos, **changes):
    base = PipelineOptions(
        manifest=str(videos / "list.txt"), root=str(videos), frames=4, stride=2, size=(32, 32)
    )
    return dataclasses.replace(base, **changes)


def take(pipeline_options, count, **kwargs):
    with ClipPipeline(pipeline_options, **{"batch_videos": 4, "seed": 3} | kwargs) as pipeline:
        return [next(pipeline) for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch.records, other.records)
        for key in batch.arrays:
            np.testing.assert_array_equal(batch.arrays[key], other.arrays[key])


def test_a_batch_holds_what_is_promised(videos):
    batch = take(options(videos, repeats=3), 1)[0]
    video, index, label = (batch.arrays[k] for k in ("video", "index", "label"))
    assert video.shape == (12, 4, 32, 32, 3) and video.dtype == np.uint8
    assert index.dtype == label.dtype == np.int32
    np.testing.assert_array_equal(index, np.arange(12))
    np.testing.assert_array_equal(label, (batch.records % 3).repeat(3))
    assert batch.names() == [f"v{i}.mp4" for i in batch.records]
    assert batch.failures == [] and batch.decode_s.shape == (4,) and batch.decode_s.min() > 0
    assert batch.worker.tolist() == [0] * 4


def test_a_batch_equals_the_same_steps_done_by_hand(videos):
    """Twin: order, frames, crops of each video one by one, without grain."""
    chosen = options(videos, repeats=2)
    with ClipPipeline(chosen, batch_videos=4, seed=3) as pipeline:
        batch, order = next(pipeline), pipeline._order
    for row, record in enumerate(batch.records.tolist()):
        rng = order.rng(row)
        path = str(videos / f"v{record}.mp4")
        frames = read_frames(path, partial(choose_frames, where=path, options=chosen, rng=rng))
        want = take_crops(frames, options=chosen, rng=rng)["video"]
        np.testing.assert_array_equal(batch.arrays["video"][2 * row : 2 * row + 2], want)


@pytest.mark.parametrize("sampling", ["dense", "window", "segments", "seconds", "sparse"])
def test_each_clip_of_a_video_has_frames_of_its_own(videos, sampling):
    """Twin: windows first, then for each its crop; the file is read once."""
    chosen = options(videos, sampling=sampling, repeats=3, repeat_windows=True)
    with ClipPipeline(chosen, batch_videos=4, seed=3) as pipeline:
        batch, order = next(pipeline), pipeline._order
    differ = 0
    for row, record in enumerate(batch.records.tolist()):
        rng, count = order.rng(row), 6 + 5 * record
        draw = partial(choose_frames, count, 25.0, where="", rng=rng)
        one = dataclasses.replace(chosen, repeats=1)
        windows = [draw(options=one) for _ in range(3)]
        differ += len({tuple(window) for window in windows}) > 1
        for repeat, window in enumerate(windows):
            frames = read_frames(str(videos / f"v{record}.mp4"), window)
            want = take_crops(frames, options=one, rng=rng)["video"][0]
            np.testing.assert_array_equal(batch.arrays["video"][3 * row + repeat], want)
    assert differ


def test_clips_with_frames_of_their_own_reach_the_device_each_on_its_canvas(videos):
    chosen = options(videos, repeats=2, repeat_windows=True, resize="device", canvas=(64, 80))
    batch = take(chosen, 1)[0]
    assert batch.arrays["source"].shape == (8, 4, 64, 80, 3)
    host = take(dataclasses.replace(chosen, resize="host"), 1)[0].arrays["video"]
    boxes = batch.arrays["box"].round().astype(int).tolist()
    cut = [
        crop_resize(frames, Box(left, top, width, height), (32, 32))
        for frames, (top, left, height, width) in zip(batch.arrays["source"], boxes, strict=True)
    ]
    np.testing.assert_array_equal(cut, host)
    with ClipPipeline(chosen, batch_videos=4, seed=3) as pipeline:
        assert {k: v.shape for k, v in pipeline.empty().items() if k != "label"} == {
            k: v.shape for k, v in batch.arrays.items() if k != "label"
        }


def test_clips_in_seconds_follow_the_rate_of_their_video(tmp_path):
    # Frame i of both is as bright as its time; a clip of 4 x 2 at 10 a second lasts 0.8 s.
    for fps in (10, 20):
        grey = np.arange(2 * fps, dtype=np.uint8)[:, None, None, None] * (100 // fps)
        write_video(tmp_path / f"{fps}.mp4", np.tile(grey, (32, 32, 3)), fps=fps)
    (tmp_path / "list.csv").write_text("path\n10.mp4\n20.mp4\n")
    chosen = options(
        tmp_path, manifest=str(tmp_path / "list.csv"), sampling="seconds", fps=10.0, crop="none"
    )
    centre = take(dataclasses.replace(chosen, select="centre", shuffle=False), 1, batch_videos=2)
    # Frames 6, 8, 10, 13 of 20 (6 + i * 7 / 3) and 12, 17, 22, 27 of 40 (12 + i * 15 / 3).
    found = centre[0].arrays["video"][:, :, 0, 0, 0].astype(int)
    np.testing.assert_allclose(found, [[60, 80, 100, 130], [60, 85, 110, 135]], atol=2)
    views = dataclasses.replace(chosen, select="views", views=(3, 1), crop="views", shuffle=False)
    starts = take(views, 1, batch_videos=2)[0].arrays["video"][:, 0, 0, 0, 0].astype(int)
    np.testing.assert_allclose(starts, [0, 60, 120, 0, 60, 120], atol=2)


def test_a_folder_of_pictures_has_no_seconds(tmp_path):
    (tmp_path / "f").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "f" / "img_00001.jpg")
    (tmp_path / "list.txt").write_text("f 1 1\n")
    with pytest.raises(VideoError, match='f: has no frame rate, which sampling="seconds" needs'):
        take(options(tmp_path, sampling="seconds"), 1, batch_videos=1)


def test_index_is_the_place_in_the_epoch_and_epochs_differ(videos):
    batches = take(options(videos), 4)  # 11 // 4 = 2 steps an epoch
    indices = [b.arrays["index"].tolist() for b in batches]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    epochs = [np.concatenate([b.records for b in batches[i : i + 2]]) for i in (0, 2)]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_workers_do_not_change_batches(videos):
    base = take(options(videos, repeats=2), 5)
    assert_same(base, take(options(videos, repeats=2, workers=1, worker_videos=4), 5))
    spread = take(options(videos, repeats=2, workers=4, worker_videos=2), 5)
    assert_same(base, spread)
    assert [b.worker.tolist() for b in spread[:3]] == [[0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1]]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_the_global_batch(videos, count):
    whole = take(options(videos, repeats=2), 3)
    parts = [
        take(options(videos, repeats=2), 3, process_index=i, process_count=count)
        for i in range(count)
    ]
    for step, batch in enumerate(whole):
        for key, array in batch.arrays.items():
            joined = np.concatenate([part[step].arrays[key] for part in parts])
            np.testing.assert_array_equal(joined, array)


def test_a_restart_continues_exactly_also_with_other_workers(videos):
    unbroken = take(options(videos), 5)
    with ClipPipeline(options(videos), batch_videos=4, seed=3) as pipeline:
        for _ in range(2):
            next(pipeline)
        saved = json.loads(json.dumps(pipeline.state()))
    assert saved["batches"] == 2
    with ClipPipeline(options(videos, workers=2), batch_videos=4, seed=3) as fresh:
        start = ClipPipeline.check_state(saved, fresh.state())
    assert_same(unbroken[2:], take(options(videos, workers=2), 3, start_step=start))


def test_a_late_start_costs_nothing(videos):
    began = time.perf_counter()
    batch = take(options(videos), 1, start_step=1_000_000)[0]
    assert time.perf_counter() - began < 5 and len(batch.records) == 4


@pytest.mark.parametrize(
    ("changes", "kwargs", "fact"),
    [
        ({}, {"seed": 4}, "seed was 3 and is 4"),
        ({}, {"batch_videos": 8}, "batch_videos was 4 and is 8"),
        ({"repeats": 2}, {}, "repeats was 1 and is 2"),
        ({"shuffle": False}, {}, "shuffle was True and is False"),
        ({"frames": 8}, {}, "frames was 4 and is 8"),
        ({"stride": 3}, {}, "stride was 2 and is 3"),
        ({"stride_overrides": (("v", 2),)}, {}, r"stride_overrides was \[\] and is \[\['v', 2\]\]"),
        ({"sampling": "segments"}, {}, "sampling was 'dense' and is 'segments'"),
        ({"size": (32, 48)}, {}, r"size was \[32, 32\] and is \[32, 48\]"),
        ({"crop": "none"}, {}, "crop was 'multi_scale' and is 'none'"),
        ({"scales": (1.0,)}, {}, r"scales was .* and is \[1.0\]"),
        ({"channels": 1}, {}, "channels was 3 and is 1"),
        ({"crop": "none", "select": "centre"}, {}, "select was 'random' and is 'centre'"),
        ({"filter": "bilinear"}, {}, "filter was 'antialias' and is 'bilinear'"),
        ({"resize": "device"}, {}, r"resize was 'host' and is \['device', 256, 456\]"),
    ],
)
def test_another_order_is_refused_in_words(videos, changes, kwargs, fact):
    with ClipPipeline(options(videos), batch_videos=4, seed=3) as pipeline:
        saved = pipeline.state()
    arguments = {"batch_videos": 4, "seed": 3} | kwargs
    with (
        ClipPipeline(options(videos, **changes), **arguments) as pipeline,
        pytest.raises(ValueError, match=fact),
    ):
        ClipPipeline.check_state(saved, pipeline.state())


def test_lists_from_a_file_are_taken_for_the_tuples_they_were(videos):
    chosen = options(videos, stride_overrides=(("v1", 3), ("v2", 1)))
    with ClipPipeline(chosen, batch_videos=4, seed=3) as pipeline:
        current = pipeline.state()
    saved = json.loads(json.dumps(current)) | {"batches": 7}
    assert ClipPipeline.check_state(saved, current) == 7
    as_tuples = current | {"size": (32, 32), "stride_overrides": (("v1", 3), ("v2", 1))}
    assert ClipPipeline.check_state(as_tuples, current) == 0


def test_what_the_device_does_not_use_may_change_and_old_states_were_of_the_host(videos):
    with ClipPipeline(options(videos), batch_videos=4, seed=3) as pipeline:
        saved = pipeline.state()
    for fact in ("resize", "select", "views", "filter", "crop_area", "crop_aspect", "randaugment"):
        del saved[fact]  # as written before there was a choice
    with ClipPipeline(options(videos, canvas=(9, 9)), batch_videos=4, seed=3) as pipeline:
        assert ClipPipeline.check_state(saved, pipeline.state()) == 0


def test_an_edited_manifest_is_refused(videos, tmp_path):
    with ClipPipeline(options(videos), batch_videos=4, seed=3) as pipeline:
        saved = pipeline.state()
    (tmp_path / "list.txt").write_text(
        (videos / "list.txt").read_text().replace("v0.mp4 0", "v0.mp4 1")
    )
    changed = options(videos, manifest=str(tmp_path / "list.txt"))
    with (
        ClipPipeline(changed, batch_videos=4, seed=3) as pipeline,
        pytest.raises(ValueError, match="manifest_sha256 was"),
    ):
        ClipPipeline.check_state(saved, pipeline.state())


def test_grey_batches_are_the_luma_of_the_colour_ones(videos):
    plain = options(videos, repeats=2, crop="none", size=(40, 48))
    colour = take(plain, 2)
    grey = take(dataclasses.replace(plain, channels=1), 2)
    for batch, other in zip(grey, colour, strict=True):
        video, rgb = batch.arrays["video"], other.arrays["video"].astype(float)
        assert video.shape == (8, 4, 40, 48, 1) and video.dtype == np.uint8
        luma = rgb @ [0.299, 0.587, 0.114]
        # Both round after the frame is resized, one also before.
        assert np.abs(video[..., 0] - luma).max() < 2
        np.testing.assert_array_equal(batch.arrays["index"], other.arrays["index"])
        np.testing.assert_array_equal(batch.records, other.records)
    with_workers = take(dataclasses.replace(plain, channels=1, workers=1), 2)
    assert_same(grey, with_workers)


def test_for_the_device_a_video_travels_once_with_the_boxes_of_its_crops(videos):
    """Pillow, given those boxes, makes the clips that the host would have sent."""
    host = options(videos, repeats=3)
    device = dataclasses.replace(host, resize="device", canvas=(52, 60))
    for sent, want in zip(take(device, 2), take(host, 2), strict=True):
        source, box = sent.arrays["source"], sent.arrays["box"]
        assert source.shape == (4, 4, 52, 60, 3) and box.shape == (12, 4)
        for clip, (top, left, height, width) in enumerate(box.astype(int).tolist()):
            got = crop_resize(source[clip // 3], Box(left, top, width, height), (32, 32))
            np.testing.assert_array_equal(got, want.arrays["video"][clip])
        for key in ("index", "label"):
            np.testing.assert_array_equal(sent.arrays[key], want.arrays[key])
    assert_same(take(device, 2), take(dataclasses.replace(device, workers=1), 2))


def test_grey_frames_travel_to_the_device_in_one_channel(videos):
    sent = take(options(videos, repeats=2, channels=1, resize="device", canvas=(52, 60)), 1)[0]
    assert sent.arrays["source"].shape == (4, 4, 52, 60, 1)


def test_repeats_share_frames_but_not_crops(videos):
    """Without a random crop the copies are equal; with it they differ."""
    plain = take(options(videos, repeats=2, crop="centre"), 1)[0].arrays["video"]
    np.testing.assert_array_equal(plain[0::2], plain[1::2])
    cropped = take(options(videos, repeats=2), 2)
    assert any((b.arrays["video"][0::2] != b.arrays["video"][1::2]).any() for b in cropped)


def test_views_of_a_video_are_adjacent_crops_of_each_clip(videos):
    chosen = options(videos, select="views", views=(2, 3), crop="views", filter="bilinear")
    batch = take(chosen, 1)[0]
    np.testing.assert_array_equal(batch.arrays["index"], np.arange(24))
    np.testing.assert_array_equal(batch.arrays["label"], (batch.records % 3).repeat(6))
    video = batch.arrays["video"].reshape(4, 2, 3, 4, 32, 32, 3)
    for row, record in enumerate(batch.records.tolist()):
        count = 6 + 5 * record
        for clip, indices in enumerate(dense_views(count, frames=4, stride=2, clips=2)):
            frames = read_frames(str(videos / f"v{record}.mp4"), indices)
            crops = view_crops(frames, size=(32, 32), crops=3, resample="bilinear")
            np.testing.assert_array_equal(video[row, clip], np.stack(crops))


def test_the_frames_in_the_centre_do_not_depend_on_the_seed(videos):
    chosen = options(videos, select="centre", crop="views", sampling="window", shuffle=False)
    assert_same(take(chosen, 2), take(chosen, 2, seed=8))


def test_stride_overrides_go_by_path():
    paths = [f"/d/{name}/1.mp4" for name in ("k400", "SomethingV2")]
    chosen = PipelineOptions("m", "r", stride=4, stride_overrides=((r"SomethingV2", 2),))
    for path, stride in zip(paths, (4, 2), strict=True):
        picked = choose_frames(200, 25.0, where=path, options=chosen, rng=np.random.default_rng(0))
        assert set(np.diff(picked)) == {stride}


def test_frames_in_folders_and_stretches_of_files_are_read_alike(videos, tmp_path):
    (tmp_path / "f").mkdir()
    for number in range(1, 41):
        Image.new("RGB", (32, 32), (5 * number, 0, 0)).save(
            tmp_path / "f" / f"img_{number:05d}.jpg"
        )
    (tmp_path / "list.txt").write_text("f 1 40\n")
    folder = options(tmp_path, crop="none", sampling="segments")
    video = take(folder, 1, batch_videos=1)[0].arrays["video"]
    reds = video[0, :, 0, 0, 0].astype(int) / 5 - 1
    # one from each quarter of 40 frames; JPEG is off by a level or two
    assert [round(r) // 10 for r in reds] == [0, 1, 2, 3]
    (tmp_path / "list.csv").write_text(f"path,start,end\nv{NUM_VIDEOS - 1}.mp4,1.0,1.04\n")
    stretch = options(videos, manifest=str(tmp_path / "list.csv"), crop="none")
    video = take(stretch, 1, batch_videos=1)[0].arrays["video"]
    assert (video[0] == video[0, :1]).all()  # 0.04 s at 25 frames a second: one frame, repeated


# --- A single pass --------------------------------------------------------------------------


def whole_pass(pipeline_options, **kwargs):
    with ClipPipeline(pipeline_options, seed=3, once=True, **kwargs) as pipeline:
        return list(pipeline)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_pass_has_every_video_once_on_any_number_of_processes(videos, count):
    chosen = options(videos, select="views", views=(2, 1), crop="views", repeats=1)
    parts = [
        whole_pass(chosen, batch_videos=6, process_index=i, process_count=count)
        for i in range(count)
    ]
    assert [len(part) for part in parts] == [2] * count  # 11 videos in batches of 6
    for part in parts:
        for batch in part:
            assert batch.arrays["video"].shape == (12 // count, 4, 32, 32, 3)
    joined = {
        key: np.concatenate([part[step].arrays[key] for step in range(2) for part in parts])
        for key in ("index", "label", "video")
    }
    np.testing.assert_array_equal(joined["index"], [*range(22), -1, -1])
    np.testing.assert_array_equal(joined["label"], [*(np.arange(11) % 3).repeat(2), -1, -1])
    assert not joined["video"][22:].any() and joined["video"][20:22].any()
    last = parts[-1][-1]
    assert last.records[-1] == -1 and last.names()[-1] == "" and not last.failures


def test_a_pass_is_the_same_with_workers_from_any_step_and_in_one_batch(videos):
    chosen = options(videos, crop="centre", select="centre")
    base = whole_pass(chosen, batch_videos=4)
    assert [b.names()[0] for b in base] == ["v0.mp4", "v4.mp4", "v8.mp4"]
    with_workers = dataclasses.replace(chosen, workers=2, worker_videos=2)
    assert_same(base, whole_pass(with_workers, batch_videos=4))
    assert_same(base[2:], whole_pass(chosen, batch_videos=4, start_step=2))
    assert whole_pass(chosen, batch_videos=4, start_step=3) == []
    (large,) = whole_pass(chosen, batch_videos=16)  # more than there are
    np.testing.assert_array_equal(large.arrays["index"], [*range(11)] + [-1] * 5)
    assert_no_children()


@pytest.mark.parametrize("resize", ["host", "device"])
def test_a_pass_puts_nothing_in_the_place_of_bad_videos_and_lists_them(some_bad, resize):
    chosen = options(
        some_bad, on_error="skip", min_errors=100, repeats=2, crop="centre", resize=resize
    )
    batches = whole_pass(chosen, batch_videos=4)
    index = np.concatenate([b.arrays["index"] for b in batches]).reshape(-1, 2)
    want = np.arange(24).reshape(12, 2)
    want[[3, 5, 11]] = -1
    np.testing.assert_array_equal(index, want)
    label = np.concatenate([b.arrays["label"] for b in batches])
    np.testing.assert_array_equal(label == -1, (want == -1).ravel())
    assert [f.path for b in batches for f in b.failures] == ["v3.mp4", "v5.mp4"]
    pixels = batches[0].arrays["video" if resize == "host" else "source"]
    assert not pixels[-1].any() and pixels[0].any()
    with pytest.raises(VideoError, match=r"v3\.mp4"):
        whole_pass(dataclasses.replace(chosen, on_error="raise"), batch_videos=4)


def test_a_pass_with_too_many_bad_videos_stops(some_bad):
    chosen = options(some_bad, on_error="skip", min_errors=2, max_error_rate=0.2)
    # 2 of the 6 videos read so far; 2 of 11 would be below the limit
    with pytest.raises(PipelineError, match="2 of 6 videos could not be used"):
        whole_pass(chosen, batch_videos=6)


# --- Bad videos -----------------------------------------------------------------------------


@pytest.fixture
def some_bad(videos, tmp_path):
    """The same list with two bad files in it."""
    for path in videos.glob("*.mp4"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "v3.mp4").unlink()
    (tmp_path / "v5.mp4").unlink()
    (tmp_path / "v5.mp4").write_bytes((videos / "v5.mp4").read_bytes()[:500])
    (tmp_path / "list.txt").write_text((videos / "list.txt").read_text())
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_stops_at_the_first_bad_video_and_names_it(some_bad, workers):
    with pytest.raises(VideoError, match=r"v[35]\.mp4: (the file does not exist|not a readable)"):
        take(options(some_bad, workers=workers), 6)
    assert_no_children()


def test_skip_replaces_counts_and_logs(some_bad, caplog):
    skip = options(some_bad, on_error="skip", max_error_rate=0.9)
    with caplog.at_level(logging.WARNING):
        batches = take(skip, 4)
    failures = [f for b in batches for f in b.failures]
    assert {f.path for f in failures} == {"v3.mp4", "v5.mp4"}
    assert {f.reason for f in failures if f.record == 3} == {"the file does not exist"}
    assert caplog.text.count("Replaced a video") == len(failures)
    used = np.concatenate([b.records for b in batches])
    assert len(used) == 16 and not {3, 5} & set(used.tolist())
    for batch in batches:  # the label is that of the video that is shown
        np.testing.assert_array_equal(batch.arrays["label"], batch.records % 3)
        assert batch.arrays["index"].tolist() in ([0, 1, 2, 3], [4, 5, 6, 7])
    others = take(dataclasses.replace(skip, workers=2, worker_videos=2), 4)
    assert_same(batches, others)
    assert [b.failures for b in others] == [b.failures for b in batches]


def test_too_many_bad_videos_stop_the_run(some_bad):
    skip = options(some_bad, on_error="skip", max_error_rate=0.1, min_errors=3)
    with pytest.raises(
        PipelineError, match=r"\d of \d+ videos could not be used .* limit is 10.0%"
    ):
        take(skip, 50)


def test_a_few_bad_videos_do_not_trip_the_limit_early(some_bad):
    skip = options(some_bad, on_error="skip", max_error_rate=0.01, min_errors=10)
    assert sum(len(b.failures) for b in take(skip, 4)) >= 2


def test_nothing_but_bad_videos_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 0\n")
    with pytest.raises(PipelineError, match="8 videos in a row could not be used"):
        take(options(tmp_path, on_error="skip"), 1, batch_videos=1)


# --- Dead and stuck workers -----------------------------------------------------------------


def assert_no_children():
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def stuck_folder(tmp_path):
    """A frame folder whose picture is a pipe: opening it never returns."""
    (tmp_path / "f").mkdir()
    for number in range(40):
        os.mkfifo(tmp_path / "f" / f"img_{number:05d}.jpg")
    (tmp_path / "list.txt").write_text("f 0 40\n")
    return options(tmp_path, clip_timeout_s=0.5, workers=1)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"\(killed.*Worker 0 \(dead\)"),
        (signal.SIGSEGV, r"crash in the decoder\)\. Worker 0 \(dead\).* an empty file"),
    ],
)
def test_a_killed_worker_is_an_error_that_says_so(videos, number, words):
    with ClipPipeline(options(videos, workers=1), batch_videos=4, seed=0) as pipeline:
        next(pipeline)
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)
        with pytest.raises(PipelineError, match=f"worker died .*{words}"):
            for _ in range(100):
                next(pipeline)
    assert_no_children()


def test_dead_workers_start_anew_at_the_batch_where_one_died(videos, caplog):
    """As often as is allowed, and with the batches of a run in which none died."""
    chosen = options(videos, repeats=2, workers=2, worker_videos=2, max_worker_restarts=2)
    steps, kills = 24, 0  # a death shows once what the worker had made before is used up
    unbroken, batches = take(dataclasses.replace(chosen, workers=0), steps), []
    with ClipPipeline(chosen, batch_videos=4, seed=3) as pipeline:
        for step in range(steps):
            if step >= 2 and kills < 2 and batches[-1].restarts == kills:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                kills += 1
            batches.append(next(pipeline))
        assert batches[-1].restarts == 2
        assert_same(unbroken, batches)
        assert "(killed; most often for want of memory)" in caplog.text
        assert "anew at the same batch, restart 1 of 2." in caplog.text
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(PipelineError, match="A data worker died"):
            for _ in range(20):
                next(pipeline)
    assert_no_children()


def test_an_unforeseen_error_in_a_worker_comes_with_its_traceback(videos, caplog):
    nothing = options(videos, workers=1, scales=())  # a box of no size can be drawn
    with pytest.raises(WorkerError, match=r"A data worker failed \(ValueError: high <= 0\)"):
        take(nothing, 1)
    assert "In a data worker" in caplog.text and ", in multi_scale_crop_box" in caplog.text
    assert_no_children()


def test_a_stuck_decoder_ends_the_run_and_names_the_clip(tmp_path, monkeypatch):
    began = time.monotonic()
    with pytest.raises(
        PipelineError,
        match=r"did not come back in time.*decoding .*/f, begun \d+ s ago.*an empty file",
    ):
        take(stuck_folder(tmp_path), 1, batch_videos=1)
    assert time.monotonic() - began < 30
    assert_no_children()


def test_a_frozen_worker_ends_the_run_from_outside(videos):
    chosen = options(videos, workers=1, stall_timeout_s=4.0)  # start-up does not count
    with ClipPipeline(chosen, batch_videos=4, seed=0) as pipeline:
        next(pipeline)
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(PipelineError, match=r"No batch came for 4 s\. Worker 0 \(alive\)"):
            for _ in range(100):
                next(pipeline)
    assert_no_children()


def test_an_empty_file_in_place_of_a_stuck_one_lets_the_same_run_go_on(videos, tmp_path):
    """The remedy that the error names: the list, and so the order, stays as it was."""
    chosen = dataclasses.replace(stuck_folder(tmp_path), workers=0, on_error="skip")
    (tmp_path / "list.txt").write_text("f 0 40\nv9.mp4 0 -1\n")
    (tmp_path / "v9.mp4").symlink_to(videos / "v9.mp4")
    with ClipPipeline(chosen, batch_videos=2, seed=0) as pipeline:
        saved = pipeline.state()
    shutil.rmtree(tmp_path / "f")
    (tmp_path / "f").touch()
    with ClipPipeline(chosen, batch_videos=2, seed=0) as pipeline:
        assert ClipPipeline.check_state(saved, pipeline.state()) == 0
        batch = next(pipeline)
    assert [failure.path for failure in batch.failures] == ["f"] * len(batch.failures) != []
    assert batch.names() == ["v9.mp4"] * 2


@pytest.fixture
def slow_messages(monkeypatch):
    """Messages are made in this process and come after the pauses put into this list."""
    pauses = []
    make_real_iterator = pipeline_module._make_iterator

    class SlowIterator:
        def __init__(self, load, chosen, *sizes):
            guard.enter(load.folder, 0, clip_timeout_s=60)
            self._real = make_real_iterator(load, dataclasses.replace(chosen, workers=0), *sizes)

        def __next__(self):
            time.sleep(pauses.pop(0) if pauses else 0.0)
            return next(self._real)

        def close(self):
            self._real.close()

    monkeypatch.setattr(pipeline_module, "_make_iterator", SlowIterator)
    monkeypatch.setattr(pipeline_module, "_ANSWER_S", 0.1)
    return pauses


def test_the_stall_limit_is_for_one_message_and_leaves_time_to_start(videos, slow_messages):
    chosen = options(videos, workers=2, worker_videos=1, stall_timeout_s=0.8)
    slow_messages += [1.2, 1.2, 0.5, 0.5, 0.5, 0.5]  # the first of each worker; then a whole batch
    with ClipPipeline(chosen, batch_videos=4, seed=0) as pipeline:
        next(pipeline)
        next(pipeline)
        slow_messages += [0.0, 0.0, 3.0]  # one may be on its way
        with pytest.raises(PipelineError, match=r"No batch came for 0\.8 s"):
            next(pipeline), next(pipeline)


def test_the_stall_limit_counts_from_when_a_batch_is_asked_for(videos, slow_messages):
    chosen = options(videos, workers=1, worker_videos=4, stall_timeout_s=0.8)
    with ClipPipeline(chosen, batch_videos=4, seed=0) as pipeline:
        next(pipeline)
        slow_messages += [0.0, 1.4, 1.4, 1.4]
        for _ in range(4):
            time.sleep(1.0)  # a long step of the training
            next(pipeline)


def test_without_workers_a_stuck_decoder_ends_the_process(tmp_path):
    chosen = dataclasses.replace(stuck_folder(tmp_path), workers=0)
    script = f"""
        from vmae_jax.data.pipeline import *
        next(ClipPipeline({chosen!r}, batch_videos=1, seed=0))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == guard.EXIT_STUCK
    assert "The decoder is stuck in" in done.stderr and str(tmp_path / "f") in done.stderr
    assert "Put an empty file in its place" in done.stderr


def test_nothing_outlives_a_killed_main_process(videos, tmp_path):
    """No worker, no temporary folder, no shared memory, with messages under way."""
    chosen = options(videos, workers=2, worker_videos=4, worker_buffer=2, frames=5, size=(34, 38))
    message_bytes = 4 * 5 * 34 * 38 * 3  # of no other test
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
            import multiprocessing, time
            from vmae_jax.data.pipeline import *
            if __name__ == "__main__":
                pipeline = ClipPipeline({chosen!r}, batch_videos=4, seed=0)
                next(pipeline)
                print(*[c.pid for c in multiprocessing.active_children()], flush=True)
                time.sleep(60)
        """)
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    main = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    workers = [int(pid) for pid in main.stdout.readline().split()]

    def left():
        shared = [f for f in Path("/dev/shm").glob("psm_*") if size_of(f) == message_bytes]
        return [*filter(is_running, workers), *shared, *temporary.iterdir()]

    wait_until(lambda: len(left()) >= 2 + 2 + 1)  # both workers are ahead
    main.kill()
    main.wait()
    wait_until(lambda: not left())


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_closing_is_repeatable_and_leaves_nothing(videos):
    pipeline = ClipPipeline(options(videos, workers=2), batch_videos=4, seed=0)
    next(pipeline)
    folder = pipeline._folder
    pipeline.close()
    pipeline.close()
    assert not folder.exists()
    with pytest.raises(PipelineError, match="closed"):
        next(pipeline)
    assert_no_children()


def call(function):
    """Calls it in a thread; returns the thread and a list that gets the result or the error."""
    result = []

    def run():
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def assert_closed(thread, result):
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(result[-1], PipelineError) and "is closed" in str(result[-1])


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_pipeline_closed_before_its_first_batch_starts_nothing(videos, temporary):
    pipeline = ClipPipeline(options(videos, workers=1), batch_videos=4, seed=0)
    pipeline.close()
    with pytest.raises(PipelineError, match="is closed"):
        next(pipeline)
    assert not list(temporary.iterdir()) and not multiprocessing.active_children()


def test_closing_while_a_thread_starts_the_pipeline_waits_and_ends_it(
    videos, temporary, monkeypatch
):
    before = fetchers()
    starting, go_on = threading.Event(), threading.Event()

    def make_iterator(*arguments):
        starting.set()
        go_on.wait(10)
        return make_real_iterator(*arguments)

    make_real_iterator = pipeline_module._make_iterator
    monkeypatch.setattr(pipeline_module, "_make_iterator", make_iterator)
    monkeypatch.setattr(pipeline_module, "_ANSWER_S", 60.0)  # however slow the machine
    pipeline = ClipPipeline(options(videos, workers=2), batch_videos=4, seed=0)
    reader = call(pipeline.__next__)
    assert starting.wait(10)
    closer, _ = call(pipeline.close)
    closer.join(0.2)
    assert closer.is_alive()  # what is half started cannot be ended yet
    go_on.set()
    closer.join(60)
    assert_closed(*reader)
    assert_nothing_left(temporary, before)


@pytest.mark.parametrize("answer_s", [60.0, 0.1])  # 0.1: workers do not answer while they start
def test_closing_while_workers_start_leaves_nothing(videos, temporary, monkeypatch, answer_s):
    before = fetchers()
    monkeypatch.setattr(pipeline_module, "_ANSWER_S", answer_s)
    pipeline = ClipPipeline(options(videos, workers=3), batch_videos=4, seed=0)
    reader = call(pipeline.__next__)
    time.sleep(0.3)
    pipeline.close()
    assert_closed(*reader)
    # Where workers were killed before they answered, the thread may stay in grain, which waits for
    # them: it belongs to no pipeline any more and ends with the process.
    assert_nothing_left(temporary, before if answer_s > 1 else None)


def fetchers():
    """Threads that wait for workers, those included that earlier tests have left in grain."""
    return {thread.ident for thread in threading.enumerate() if thread.name == "data-fetcher"}


def assert_nothing_left(temporary, before):
    assert_no_children()
    assert not list(temporary.iterdir())
    assert before is None or fetchers() <= before


def test_closing_wakes_a_thread_that_waits_for_a_message(videos, slow_messages):
    slow_messages += [3.0]
    pipeline = ClipPipeline(options(videos, workers=1), batch_videos=4, seed=0)
    began = time.monotonic()
    reader = call(pipeline.__next__)
    time.sleep(0.5)
    pipeline.close()
    assert_closed(*reader)
    assert time.monotonic() - began < 3.0


def test_closing_while_another_thread_decodes(videos, temporary, monkeypatch):
    decoding, go_on = threading.Event(), threading.Event()

    def read_slowly(*arguments, **kwargs):
        decoding.set()
        go_on.wait(10)
        return read_clip(*arguments, **kwargs)

    monkeypatch.setattr(clips_module, "read_clip", read_slowly)
    pipeline = ClipPipeline(options(videos), batch_videos=4, seed=0)
    reader = call(pipeline.__next__)
    assert decoding.wait(10)
    pipeline.close()
    go_on.set()
    assert_closed(*reader)
    assert not list(temporary.iterdir()) and not guard._guards


def test_a_worker_that_comes_too_late_is_sent_away(tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    assert guard.enter(folder, 0, clip_timeout_s=1.0) is guard.of(folder)
    guard.ask_to_stop(folder)
    assert guard.of(folder).stopped()
    assert guard.enter(folder, 1, clip_timeout_s=1.0) is None
    guard.leave(folder)
    guard.leave(folder)
    guard.remove(folder)
    guard.remove(folder)  # or cleared away by somebody else
    guard.ask_to_stop(folder)
    assert guard.enter(folder, 2, clip_timeout_s=1.0) is None
    assert guard.of(folder) is None and not list(tmp_path.iterdir())


def test_a_forgotten_pipeline_is_closed_with_its_last_reference(videos):
    pipeline = ClipPipeline(options(videos, workers=1), batch_videos=4, seed=0)
    next(pipeline)
    folder = pipeline._folder
    del pipeline
    assert not folder.exists()
    assert_no_children()


# --- Options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "center"}, "choose one of multi_scale, resized, views, centre, none"),
        ({"randaugment": (7, 4)}, r"randaugment must be \(magnitude, operations, deviation\)"),
        ({"randaugment": (11, 4, 0.5)}, r"the magnitude must lie in \[0, 10\]"),
        ({"randaugment": (7, 4, 0.5), "select": "centre", "crop": "none"}, "randaugment=\\(\\)"),
        ({"randaugment": (7, 4, 0.5), "resize": "device", "repeats": 2}, "for each crop"),
        ({"select": "all"}, "choose one of random, centre, views"),
        ({"filter": "cubic"}, "choose one of antialias, bilinear"),
        ({"views": (0, 3)}, r"views must be \(clips, crops\) of a video, got \(0, 3\)"),
        ({"crop_area": (0.5, 1.5)}, r"crop_area must be \(least, most\)"),
        ({"crop_aspect": (2.0, 1.0)}, r"crop_aspect must be \(least, most\)"),
        ({"select": "centre"}, 'crop="multi_scale" is drawn; choose crop="views"'),
        ({"select": "views", "crop": "views", "repeats": 2}, "repeats must be 1, got 2"),
        ({"select": "views", "crop": "centre"}, "asks for 3; choose"),
        ({"crop": "views", "resize": "device"}, "views are cut on the host"),
        ({"resize": "gpu"}, "choose one of host, device"),
        ({"canvas": (256, 0)}, r"canvas must be \(height, width\)"),
        ({"sampling": "uniform"}, "dense, window, segments"),
        ({"on_error": "ignore"}, "raise, skip"),
        ({"frames": 0}, "frames must be positive"),
        ({"size": (224,)}, "height, width"),
        ({"channels": 2}, r"channels=2; choose 3 \(RGB\) or 1 \(grey\)"),
        ({"workers": -1}, "workers must be 0 or more"),
    ],
)
def test_bad_options_are_refused_early(changes, message):
    with pytest.raises(ValueError, match=message):
        PipelineOptions("m", "r", **changes)


def test_batches_that_do_not_fit_are_refused(videos):
    with pytest.raises(ValueError, match="11 videos do not fill one batch of 12"):
        ClipPipeline(options(videos), batch_videos=12, seed=0)
    with pytest.raises(ValueError, match="worker_videos=3 does not divide the 4 videos"):
        ClipPipeline(options(videos, worker_videos=3), batch_videos=4, seed=0)


def test_no_jax_in_the_data_package():
    modules = "vmae_jax.data.pipeline, vmae_jax.tools.check_data"
    code = f"import sys, {modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
