"""Preparing a list: what is in the shards, going on after a kill, failures, training from it."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import fsspec
import numpy as np
import pytest
from PIL import Image

from vmae_jax.data import prepare, records
from vmae_jax.data.manifest import ManifestError
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.data.sources import open_source
from vmae_jax.data.video import Limits, VideoError, probe, read_frames, write_video
from vmae_jax.tools import check_data
from vmae_jax.tools.prepare import main

SIZES = [(40, 64, 20), (64, 40, 33), (32, 32, 5), (36, 52, 40), (40, 64, 17)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos of different size and length, smooth enough for JPEG, with labels and names."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    lines = ["path,label\n"]
    for i, (height, width, count) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (count, 2, 2, 3), np.uint8)
        frames = [
            np.asarray(Image.fromarray(c).resize((width, height), Image.BILINEAR)) for c in coarse
        ]
        write_video(root / f"v {i}.mp4", np.stack(frames), fps=25, crf=4)
        lines.append(f"v {i}.mp4,{i % 2}\n")
    (root / "list.csv").write_text("".join(lines))
    (root / "classes.txt").write_text("run\nsit\n")
    return root


def run(videos, out, *flags):
    return main(
        ["--manifest", str(videos / "list.csv"), "--out", str(out), "--short_side=32",
         "--shards=2", "--workers=2", *flags]
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """Prepared sets by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in records.KINDS}
    for kind, folder in folders.items():
        assert run(videos, folder, f"--format={kind}", "--crf=4", "--quality=95") == 0
    return folders


def contents(folder):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("kind", records.KINDS)
def test_records_hold_all_frames_scaled_with_label_and_provenance(videos, prepared, kind):
    source = open_source(str(prepared[kind]))
    assert [source.name(i) for i in range(5)] == [f"v {i}.mp4" for i in range(5)]
    assert source.class_names == ("run", "sit") and source.num_classes == 2
    scaled = [(32, 50), (50, 32), (32, 32), (32, 46), (32, 50)]  # 32/40 of 64 is 51.2: 50 is even
    for i, (height, width, count) in enumerate(SIZES):
        stored = source.fetch(i, Limits())
        assert stored.label == i % 2
        frames = stored.read(lambda n, _: range(n), Limits())
        assert frames.shape == (count, *scaled[i], 3)
        whole = read_frames(videos / f"v {i}.mp4", range(count))
        assert whole.shape[1:3] == (height, width)
        wanted = np.stack([prepare.scale_down(frame, 32) for frame in whole]).astype(int)
        assert np.abs(frames - wanted).mean() < 3  # two lossy codings of smooth pictures
    reader = records._reader(str(prepared[kind] / "00001-of-00002.array_record"))
    header, parts = records.unpack(reader.read([0])[0], "")
    assert (header["kind"], header["name"], header["frames"]) == (kind, "v 2.mp4", 5)
    assert header["source"]["path"] == str(videos / "v 2.mp4")
    assert header["source"]["sha256"] and header["fps"] == 25
    assert len(parts) == (5 if kind == "jpeg" else 1)


def test_key_frames_come_at_the_asked_interval(videos, tmp_path):
    import av

    assert run(videos, tmp_path, "--gop=6") == 0
    data = open_source(str(tmp_path)).fetch(3, Limits()).data
    (tmp_path / "v.mp4").write_bytes(data)
    with av.open(str(tmp_path / "v.mp4")) as container:
        packets = sorted((p for p in container.demux(video=0) if p.size), key=lambda p: p.pts)
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == list(range(0, 40, 6))
    assert probe(data).num_frames == 40


@pytest.mark.parametrize("kind", records.KINDS)
def test_training_from_it_gives_the_clips_of_the_list(videos, prepared, kind):
    batches = []
    some = int(kind == "mp4")  # once is enough to see that the source reaches a worker
    for manifest, workers in ((videos / "list.csv", 0), (prepared[kind], some)):
        options = PipelineOptions(
            str(manifest), frames=4, stride=2, size=(32, 32), crop="none", workers=workers
        )
        with ClipPipeline(options, batch_videos=5, seed=7) as pipeline:
            batches.append(next(pipeline))
    listed, shards = batches
    assert listed.names() == shards.names()
    np.testing.assert_array_equal(listed.arrays["label"], shards.arrays["label"])
    difference = listed.arrays["video"].astype(int) - shards.arrays["video"]
    assert np.abs(difference).mean() < 4  # the same frames: others differ by 60 and more


@pytest.mark.parametrize("kind", records.KINDS)
def test_each_repeat_of_a_prepared_video_has_the_frames_that_it_has_of_the_list(
    videos, prepared, kind
):
    clips = []
    for manifest in (videos / "list.csv", prepared[kind]):
        options = PipelineOptions(
            str(manifest), frames=2, stride=4, size=(32, 32), crop="none", sampling="seconds",
            repeats=3, repeat_windows=True, workers=0,
        )  # fmt: skip
        with ClipPipeline(options, batch_videos=5, seed=7) as pipeline:
            clips.append(next(pipeline).arrays["video"].astype(int))
    listed, shards = clips
    assert np.abs(listed - shards).mean(axis=(1, 2, 3, 4)).max() < 8
    others = np.roll(listed.reshape(5, 3, *listed.shape[1:]), 1, axis=1).reshape(listed.shape)
    assert np.abs(listed - others).mean() > 30  # so that other frames would be noticed


def test_the_files_do_not_depend_on_workers_and_are_kept(videos, prepared, tmp_path):
    flags = ("--format=mp4", "--crf=4", "--quality=95")
    assert run(videos, tmp_path, *flags, "--workers=1") == 0
    made = contents(tmp_path)
    assert made == contents(prepared["mp4"])
    shard = tmp_path / "00000-of-00002.array_record"
    other = tmp_path / "00001-of-00002.array_record"
    other.write_bytes(other.read_bytes()[:-1] + b"x")  # a disk that lost its power
    before = shard.stat().st_mtime_ns
    assert run(videos, tmp_path, *flags) == 0
    assert contents(tmp_path) == made and shard.stat().st_mtime_ns == before


def test_a_killed_run_goes_on_where_it_was(videos, prepared, tmp_path):
    command = [
        sys.executable, "-m", "vmae_jax.tools.prepare", "--manifest", str(videos / "list.csv"),
        "--out", str(tmp_path), "--short_side=32", "--shards=2", "--workers=1", "--crf=4",
        "--quality=95",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    note = tmp_path / "notes" / "00000-of-00002.array_record.json"
    while not note.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made_at = note.stat().st_mtime_ns
    assert not (tmp_path / "dataset.json").exists()
    with pytest.raises(ManifestError, match=r"a folder without dataset\.json.*run prepare again"):
        open_source(str(tmp_path))
    assert run(videos, tmp_path, "--crf=4", "--quality=95") == 0
    assert note.stat().st_mtime_ns == made_at
    assert contents(tmp_path) == contents(prepared["mp4"])


def test_odd_files_are_failures_in_the_report(shared, tmp_path):
    odd = shared / "data" / "odd"
    with (odd / "expect.csv").open(encoding="utf-8") as file:
        expected = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    rows = [["path"], *([name] for name in expected)]
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    flags = ["--manifest", str(tmp_path / "list.csv"), "--root", str(odd), "--shards=1"]
    out = tmp_path / "out"
    assert main([*flags, "--out", str(out), "--format=jpeg", "--short_side=32"]) == 1
    report = json.loads((out / "report.json").read_text())
    failed = {failure["name"]: failure["reason"] for failure in report["failures"]}
    source = open_source(str(out))
    done = {source.name(i): i for i in range(len(source))}
    assert done.keys() | failed.keys() == expected.keys()
    for name, row in expected.items():
        assert name in done or row["should"] != "decode", f"{name}: {failed.get(name)}"
        assert name in failed or row["should"] != "reject", name
        if name in done:
            count = len(source.fetch(done[name], Limits()).pictures)
            assert int(row["frames_min"]) <= count <= int(row["frames_max"]), name


def rate_of(stored):
    rates = []
    stored.read(lambda _, fps: rates.append(fps) or [0], Limits())
    return rates[0]


@pytest.mark.parametrize("kind", records.KINDS)
def test_prepared_videos_keep_their_rate_and_pictures_have_none(prepared, tmp_path, kind):
    assert rate_of(open_source(str(prepared[kind])).fetch(0, Limits())) == 25.0
    (tmp_path / "f").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 8)).save(tmp_path / "f" / f"img_{number:05d}.jpg")
    (tmp_path / "list.txt").write_text("f 0 2\n")
    flags = ["--manifest", str(tmp_path / "list.txt"), "--workers=1", f"--format={kind}"]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    stored = open_source(str(tmp_path / "out")).fetch(0, Limits())
    assert np.isnan(rate_of(stored)) and np.isnan(stored.times(2, Limits())).all()


def test_folders_of_pictures_and_stretches_are_prepared(videos, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for number in range(3, 9):
        Image.new("RGB", (16, 8), (20 * number, 0, 0)).save(folder / f"img_{number:05d}.jpg")
    (tmp_path / "list.txt").write_text("f 3 6\n")
    flags = ["--manifest", str(tmp_path / "list.txt"), "--workers=1"]
    assert main([*flags, "--out", str(tmp_path / "out"), "--format=jpeg"]) == 0
    stored = open_source(str(tmp_path / "out")).fetch(0, Limits())
    frames = stored.read([0, 5], Limits())
    assert np.abs(frames[:, 4, 4, 0].astype(int) - [60, 160]).max() <= 2
    (tmp_path / "list.csv").write_text("path,start,end\nv 3.mp4,0.4,0.8\n")
    flags = ["--manifest", str(tmp_path / "list.csv"), "--root", str(videos), "--workers=1"]
    assert main([*flags, "--out", str(tmp_path / "cut"), "--short_side=64"]) == 0
    stored = open_source(str(tmp_path / "cut")).fetch(0, Limits())
    frames = stored.read(lambda n, _: range(n), Limits()).astype(int)
    wanted = read_frames(videos / "v 3.mp4", range(10, 20))
    assert frames.shape == wanted.shape and np.abs(frames - wanted).mean() < 6


def test_a_file_that_hangs_costs_only_itself(videos, tmp_path):
    folder = tmp_path / "stuck"
    folder.mkdir()
    os.mkfifo(folder / "img_00000.jpg")
    (tmp_path / "list.txt").write_text(f"{videos}/v 0.mp4 0 -1\nstuck 0 1\n{videos}/v 2.mp4 0 -1\n")
    flags = ["--manifest", str(tmp_path / "list.txt"), "--allow_outside", "--timeout=0.5"]
    assert main([*flags, "--out", str(tmp_path / "out"), "--shards=1"]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [failure["row"] for failure in report["failures"]] == [1]
    assert "the process that converted it died" in report["failures"][0]["reason"]
    assert report["videos"] == 2


def test_a_machine_without_room_ends_the_run_instead_of_losing_the_videos(
    videos, tmp_path, capsys, monkeypatch
):
    class Full:
        def submit(self, *_):
            raise BrokenProcessPool

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(prepare, "_one_process", lambda _: Full())
    assert run(videos, tmp_path, "--shards=1") == 2
    assert "4 processes died one after another, the last at" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["settings.json"]


def test_a_process_that_cannot_start_is_not_the_fault_of_the_videos(
    videos, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(prepare, "_enter_process", os.rmdir)  # fails with any arguments of a job
    assert run(videos, tmp_path / "out", "--shards=1") == 2
    assert "a process that converts videos cannot start" in capfd.readouterr().err


def test_what_is_prepared_is_a_list(prepared, tmp_path, capsys):
    assert main(["--manifest", str(prepared["mp4"]), "--out", str(tmp_path / "out")]) == 2
    assert "is a prepared set (mp4); what can be prepared is a list" in capsys.readouterr().err


def test_a_set_begun_otherwise_is_refused(videos, prepared, capsys):
    assert run(videos, prepared["mp4"], "--crf=30") == 2
    said = capsys.readouterr().err
    assert "begun otherwise: settings was" in said and "'crf': 4" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--short_side=33",), "short_side=33 must be even"),
        (("--quality=0",), "quality=0 is not in 1..95"),
        (("--manifest=absent.csv",), "absent.csv: the manifest cannot be read"),
    ],
)
def test_what_cannot_be_used_is_said(videos, tmp_path, capsys, flags, said):
    assert run(videos, tmp_path / "out", *flags) == 2
    assert said in capsys.readouterr().err


def test_a_list_of_nothing_but_failures_makes_no_set(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("absent.mp4 0\n")
    out = tmp_path / "out"
    assert main(["--manifest", str(tmp_path / "list.txt"), "--out", str(out)]) == 2
    assert "no video could be prepared" in capsys.readouterr().err
    assert not (out / "dataset.json").exists()


def test_a_set_is_written_to_a_bucket(videos, prepared):
    out = "memory://prepared"
    flags = ("--format=mp4", "--crf=4", "--quality=95")
    try:
        assert run(videos, out, *flags) == 0
        memory = fsspec.filesystem("memory")
        for name, data in contents(prepared["mp4"]).items():
            assert memory.cat_file(f"/prepared/{name}") == data
        with pytest.raises(ManifestError, match="local folders and gs:// only"):
            open_source(out)
    finally:
        fsspec.filesystem("memory").rm("/prepared", recursive=True)


def test_beam_makes_the_same_shards(videos, prepared, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed (extra `prepare`)")
    flags = ("--format=mp4", "--crf=4", "--quality=95", "--runner=beam")
    assert run(videos, tmp_path, *flags) == 0
    assert contents(tmp_path) == contents(prepared["mp4"])


def test_beam_arguments_are_for_beam_only(videos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(videos, tmp_path, "--", "--project=x")
    assert "are for --runner=beam" in capsys.readouterr().err


def test_a_prepared_set_is_examined(prepared, tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ["--manifest", str(prepared["jpeg"]), "--workers=1", "--report", str(report)]
    assert check_data.main([*flags, "--min_frames=10"]) == 1
    found = json.loads(report.read_text())
    assert [(p["path"], p["kind"]) for p in found["problems"]] == [("v 2.mp4", "short")]
    assert found["classes"] == {"run": 2, "sit": 2} and found["good"] == 4
    assert check_data.main([*flags, "--out", str(tmp_path / "clean.csv")]) == 2
    assert "is a prepared set (jpeg); leave it out" in capsys.readouterr().err


# --- What can be wrong with a set -------------------------------------------------------------


@pytest.fixture
def copy(prepared, tmp_path):
    for name, data in contents(prepared["mp4"]).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_files_that_do_not_belong_together_are_refused(copy):
    shard, index, facts = (
        copy / name for name in ("00000-of-00002.array_record", "index.csv", "dataset.json")
    )
    whole = index.read_text()
    index.write_text(whole[: whole.rindex("v 4")])
    with pytest.raises(ManifestError, match=r"index\.csv 4; the files are of different sets"):
        open_source(str(copy))
    index.write_text(whole)
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(
        ManifestError, match=r"00000-of-00002\.array_record: is missing or does not"
    ):
        open_source(str(copy))
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(VideoError, match=r"v 0\.mp4 \(.*00000.*\[0\]\): cannot be read"):
        open_source(str(copy)).fetch(0, Limits())
    facts.write_text(facts.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ManifestError, match="version 2 of the layout"):
        open_source(str(facts))
    facts.write_text("{}")
    with pytest.raises(ManifestError, match=r"not a file that vmae_jax\.tools\.prepare wrote"):
        open_source(str(copy))


def test_only_the_wanted_pictures_of_a_record_are_decoded(prepared):
    stored = open_source(str(prepared["jpeg"])).fetch(0, Limits())
    damaged = dataclasses.replace(stored, pictures=(b"x", *stored.pictures[1:]))
    np.testing.assert_array_equal(damaged.read([3, 1], Limits()), stored.read([3, 1], Limits()))
    with pytest.raises(VideoError, match="the frame number 0 cannot be read"):
        damaged.read([3, 0], Limits())


def test_a_record_is_what_the_layout_says():
    packed = records.pack({"kind": "jpeg", "name": "ü", "label": 1}, [b"ab", b"", b"c"])
    length = int.from_bytes(packed[4:8], "little")
    assert packed[:4] == b"vmr1" and packed[8 + length :] == b"abc"
    assert json.loads(packed[8 : 8 + length])["sizes"] == [2, 0, 1]
    header, parts = records.unpack(packed, "x")
    assert header["name"] == "ü" and [bytes(p) for p in parts] == [b"ab", b"", b"c"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"vmr2\2\0\0\0{}",
        b"vmr1\2\0\0\0{}",
        b"vmr1\377\377\0\0{}",
        records.pack({"kind": "mp4"}, [b"abc"])[:-1],
        records.pack({"kind": "gif"}, [b"abc"]),
    ],
)
def test_a_damaged_record_is_refused(damaged):
    with pytest.raises(VideoError, match="record"):
        records.unpack(damaged, "x")
