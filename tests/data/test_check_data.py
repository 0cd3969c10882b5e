"""Examining a whole manifest: kinds of problems, the report, the clean manifest."""

import json

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.manifest import read_manifest
from vmae_jax.data.video import write_video
from vmae_jax.tools import check_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, count, fps in (("good", 40, 25), ("other", 50, 30), ("short", 5, 25)):
        frames = rng.integers(0, 256, (count, 32, 48, 3), np.uint8)
        write_video(root / f"{name}.mp4", frames, fps=fps)
    whole = (root / "good.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[:1000])
    damaged = bytearray(whole)
    middle = len(whole) // 2
    damaged[middle : middle + 4000] = bytes(4000)
    (root / "damaged.mp4").write_bytes(damaged)
    return root


def run(root, tmp_path, text, *flags):
    manifest, out, report = (tmp_path / n for n in ("list.csv", "clean.csv", "report.json"))
    manifest.write_text(text)
    code = check_data.main(
        [
            *("--manifest", str(manifest), "--root", str(root), "--workers", "1"),
            *("--out", str(out), "--report", str(report), *flags),
        ]
    )
    return code, json.loads(report.read_text()), out


def test_problems_are_found_named_and_left_out(root, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("run\nsit\nwalk\n")
    text = "path,label,start,end\ngood.mp4,0,,\nabsent.mp4,0,,\nshort.mp4,1,,\ncut.mp4,1,,\n"
    text += "other.mp4,2,0.5,1.5\nother.mp4,2,0.5,0.6\ngood.mp4,,,\n"
    code, report, out = run(root, tmp_path, text)
    assert code == 1
    assert [(p["row"], p["kind"]) for p in report["problems"]] == [
        (1, "missing"),
        (2, "short"),
        (3, "corrupt"),
        (5, "short"),  # 0.1 s of 30 frames a second: 3 frames
    ]
    assert report["problem_counts"] == {"missing": 1, "short": 2, "corrupt": 1}
    assert (report["videos"], report["good"]) == (7, 3)
    assert report["classes"] == {"run": 1, "sit": 0, "walk": 1, "no label": 1}
    assert report["fps"] == {"25": 2, "30": 1} and report["size"] == {"48x32": 3}
    assert report["frames"]["min"] == 30 and report["frames"]["max"] == 40
    clean = read_manifest(out, root=root)
    assert [clean.name(i) for i in range(3)] == ["good.mp4", "other.mp4", "good.mp4"]
    assert (clean[1].start, clean[1].end, clean[2].label) == (0.5, 1.5, -1)
    assert clean.sha256 == report["clean"]["sha256"]
    shown = capsys.readouterr().out
    assert "3 of 7 videos are good" in shown and "absent.mp4: the file does not exist" in shown


def test_damage_inside_is_found_by_a_full_decode(root, tmp_path):
    code, report, _ = run(root, tmp_path, "good.mp4 0\ndamaged.mp4 0\n", "--full_decode")
    assert code == 1
    assert [p["path"] for p in report["problems"]] == ["damaged.mp4"]


def test_a_good_list_comes_back_as_it_was(root, tmp_path):
    text = "good.mp4 0\nother.mp4 1\n"
    code, report, out = run(root, tmp_path, text)
    assert code == 0 and out.read_text() == text
    assert report["clean"]["sha256"] == report["manifest_sha256"]


def test_folders_of_frames_are_examined(root, tmp_path):
    folder = root / "frames"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (16, 8)).save(folder / f"{number:03d}.png")
    flags = ("--frame_template", "{number:03d}.png")
    code, report, _ = run(root, tmp_path, "frames 0 20\nframes 0 21\n", *flags)
    assert code == 1 and report["size"] == {"16x8": 1}
    assert report["problems"][0]["row"] == 1
    assert "020.png does not exist" in report["problems"][0]["reason"]


def test_a_bad_manifest_is_said_in_one_line(root, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("good.mp4 zero\n")
    for name, said in (("list.txt", "line 1, column 10"), ("absent.txt", "absent.txt")):
        code = check_data.main(["--manifest", str(tmp_path / name), "--root", str(root)])
        shown = capsys.readouterr().err
        assert code == 2 and said in shown and len(shown.splitlines()) == 1


def test_a_result_that_cannot_be_written_is_said_in_one_line(root, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("good.mp4 0\n")
    (tmp_path / "taken").mkdir()
    flags = ("--manifest", str(tmp_path / "list.txt"), "--root", str(root), "--workers", "1")
    code = check_data.main([*flags, "--report", str(tmp_path / "taken")])
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("check_data")]
    assert code == 2 and len(shown) == 1 and "Is a directory" in shown[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--workers", "0"), "--workers must be positive"),
        (("--timeout", "-1"), "--timeout must be positive"),
        (("--out", "/no/such/folder/clean.csv"), "the folder /no/such/folder does not exist"),
        (("--frame_template", "{name}.jpg"), "it may hold {number} and {folder}"),
    ],
)
def test_arguments_are_refused_before_anything_is_read(flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--manifest", "absent.txt", "--root", ".", *flags])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_an_interrupt_is_said_in_one_line(root, tmp_path, capsys, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(check_data, "check", interrupt)
    (tmp_path / "list.txt").write_text("good.mp4 0\n")
    flags = ["--manifest", str(tmp_path / "list.txt"), "--root", str(root)]
    assert check_data.main([*flags, "--out", str(tmp_path / "out.txt")]) == 130
    assert "interrupted" in capsys.readouterr().err and not (tmp_path / "out.txt").exists()


def test_the_help_says_what_the_exit_codes_mean(capsys):
    with pytest.raises(SystemExit):
        check_data.main(["--help"])
    shown = capsys.readouterr().out
    assert "exit codes:" in shown and "  2    the arguments or the list cannot be used" in shown


def test_a_file_that_hangs_the_decoder_costs_only_itself(root, tmp_path):
    import os

    folder = root / "stuck"
    folder.mkdir()
    for number in (0, 19):
        os.mkfifo(folder / f"{number:03d}.png")
    text = "good.mp4 0 -1\nstuck 0 20\nother.mp4 0 -1\n"
    flags = ("--frame_template", "{number:03d}.png", "--timeout", "0.5")
    code, report, out = run(root, tmp_path, text, *flags)
    assert code == 1
    assert [(p["path"], p["kind"]) for p in report["problems"]] == [("stuck", "corrupt")]
    assert "hang" in report["problems"][0]["reason"]
    assert out.read_text() == "good.mp4 0 -1\nother.mp4 0 -1\n"
