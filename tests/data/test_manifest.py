"""Reading lists of videos: three released styles, CSV, and errors that say where."""

import hashlib

import numpy as np
import pytest

from vmae_jax.data.manifest import Clip, ManifestError, read_manifest


def write(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_path_label_splits_at_the_last_space_and_adds_mp4(tmp_path):
    text = "a/my clip 1.mp4 3\nb/plain 0\nc.d/no_dot 2\n"
    manifest = read_manifest(write(tmp_path, text), root="/data")
    assert manifest.style == "path_label"
    assert [manifest.name(i) for i in range(3)] == [
        "a/my clip 1.mp4",
        "b/plain.mp4",
        "c.d/no_dot.mp4",
    ]
    assert manifest[0] == Clip("/data/a/my clip 1.mp4", 3, None, None, 0, -1)
    np.testing.assert_array_equal(manifest.labels, [3, 0, 2])
    assert manifest.num_classes == 4
    assert manifest.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_path_start_total_tells_videos_from_folders(tmp_path):
    manifest = read_manifest(write(tmp_path, "k/v.mp4 0 -1\nssv2/77 1 48\n"), root="/data")
    assert manifest.style == "path_start_total"
    assert manifest[0] == Clip("/data/k/v.mp4", -1, None, None, 0, -1)
    assert manifest[1] == Clip("/data/ssv2/77", -1, None, None, 1, 48)
    assert manifest.num_classes == 0


def test_csv_columns_are_optional_and_in_any_order(tmp_path):
    text = 'label,path,end\n2,"a, b.mp4",\n,c.mp4,2.5\n'
    manifest = read_manifest(write(tmp_path, text), root="/data/")
    assert manifest.style == "csv"
    assert manifest[0] == Clip("/data/a, b.mp4", 2, None, None, 0, -1)
    assert manifest[1] == Clip("/data/c.mp4", -1, None, 2.5, 0, -1)


def test_class_names_come_from_the_side_file(tmp_path):
    (tmp_path / "classes.txt").write_text("run\nsit\nwalk\n")
    manifest = read_manifest(write(tmp_path, "a.mp4 1\n"), root="/data")
    assert manifest.class_names == ("run", "sit", "walk")
    assert manifest.num_classes == 3  # not the largest label plus one


@pytest.mark.parametrize("text", ["a.mp4 0\r\nb.mp4 1\r\n", "\ufeffa.mp4 0\n\nb.mp4 1"])
def test_line_ends_byte_marks_and_empty_lines_do_not_matter(tmp_path, text):
    manifest = read_manifest(write(tmp_path, text), root="/data")
    assert [manifest.name(i) for i in range(len(manifest))] == ["a.mp4", "b.mp4"]


def test_absolute_paths_under_the_root_become_relative(tmp_path):
    manifest = read_manifest(write(tmp_path, "/data/k400/a.mp4 0\n"), root="/data/k400")
    assert manifest.name(0) == "a.mp4" and manifest[0].path == "/data/k400/a.mp4"


def test_names_beyond_ascii_survive_the_flat_storage(tmp_path):
    names = ["ü/ñ & co.mp4", "日本.mp4", "a.mp4"]
    manifest = read_manifest(write(tmp_path, "".join(f"{n} 0\n" for n in names)), root="/d")
    assert [manifest.name(i) for i in range(3)] == names


@pytest.mark.parametrize(
    ("text", "style", "where", "what"),
    [
        ("a.mp4 0\nb.mp4 x\n", "path_label", "line 2, column 7", "'x'"),
        ("a.mp4 0\nb.mp4\n", "path_label", "line 2, column 1", "path label"),
        ("a.mp4 -2\n", "path_label", "line 1, column 7", "-2"),
        ("../a.mp4 0\n", "path_label", "line 1, column 1", "leaves the root"),
        ("/etc/a.mp4 0\n", "path_label", "line 1, column 1", "leaves the root"),
        ("gs://b/a.mp4 0\n", "path_label", "line 1, column 1", "leaves the root"),
        ("f 1 0\n", "path_start_total", "line 1, column 5", "must be positive"),
        ("f -1 9\n", "path_start_total", "line 1, column 3", "0 or more"),
        ("path,lable\na,0\n", "csv", "line 1, column 2", "'lable'"),
        ("label\n0\n", "csv", "line 1, column 1", "no column `path`"),
        ("path,label\na,0\nb,1,2\n", "csv", "line 3, column 3", "3 fields"),
        ("path,label\na,zero\n", "csv", "line 2, column 2 (label)", "'zero'"),
        ("path,start,end\na,2,1\n", "csv", "line 2, column 3 (end)", "not after"),
        ("path,start\na,nan\n", "csv", "line 2, column 2 (start)", "'nan'"),
        ("path\n\na\n,\n", "csv", "line 4, column 2", "2 fields"),
        ('path,label\n"",1\n', "csv", "line 2, column 1 (path)", "empty"),
    ],
)
def test_a_bad_line_names_file_line_and_column(tmp_path, text, style, where, what):
    with pytest.raises(ManifestError) as error:
        read_manifest(write(tmp_path, text), root="/data", style=style)
    message = str(error.value)
    assert "list.txt" in message and where in message and what in message


def test_a_label_without_a_class_name_is_an_error(tmp_path):
    (tmp_path / "classes.txt").write_text("run\n")
    with pytest.raises(ManifestError, match="line 2: label 1"):
        read_manifest(write(tmp_path, "a.mp4 0\nb.mp4 1\n"), root="/data")


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"a.mp4 0\nb\xff.mp4 0\n")
    with pytest.raises(ManifestError, match="line 2, column 2"):
        read_manifest(path, root="/data")


def test_an_empty_or_absent_manifest_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="lists no videos"):
        read_manifest(write(tmp_path, "\n"), root="/data")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "nope.csv", root="/data")


def test_paths_may_leave_the_root_if_allowed(tmp_path):
    manifest = read_manifest(write(tmp_path, "/etc/a.mp4 0\n"), root="/d", allow_outside=True)
    assert manifest[0].path == "/etc/a.mp4"
