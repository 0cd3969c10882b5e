"""Lists of a folder of class folders."""

import pytest

from vmae_jax.data.manifest import read_manifest
from vmae_jax.tools.list_videos import (
    UNLABELLED,
    ListError,
    find_parts,
    find_videos,
    main,
    split,
)

CLIPS = ("b/1.mp4", "b/deeper/2.MOV", "a, c/x 1.webm", "a, c/.hidden.mp4", "a, c/notes.txt")


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_are_classes_and_lists_can_be_read(tmp_path, capsys):
    folder = folder_of(tmp_path / "clips", *CLIPS, *(f"b/{n}.avi" for n in range(8)), "empty/x.txt")
    assert main([str(folder), f"--out={tmp_path / 'lists'}", "--val=0.3"]) == 0
    assert "b: train 7, val 3" in capsys.readouterr().out
    train, val = (
        read_manifest(tmp_path / f"lists/{name}.csv", root=folder) for name in ("train", "val")
    )
    assert train.class_names == ("a, c", "b") and train.num_classes == 2
    assert train.name(0) == "a, c/x 1.webm"  # the only one of its class is trained on
    names = [listed.name(i) for listed in (train, val) for i in range(len(listed))]
    assert sorted(names) == sorted([*CLIPS[:3], *(f"b/{n}.avi" for n in range(8))])
    assert train.labels.tolist() == [0] + [1] * 7 and val.labels.tolist() == [1] * 3


def test_the_seed_decides_and_other_classes_do_not():
    videos = {"a": [f"a/{i}" for i in range(50)], "b": [f"b/{i}" for i in range(50)]}
    _, first = split(videos, share=0.2)
    assert [len(paths) for paths in first.values()] == [10, 10]
    assert split({"b": videos["b"]}, share=0.2)[1]["b"] == first["b"]
    assert split(videos, share=0.2, seed=1)[1] != first
    assert split(videos, share=0.0)[1] == {"a": [], "b": []}


def test_clips_of_one_recording_stay_on_one_side():
    videos = {"a": [f"a/v_g{group}_c{clip}.avi" for group in range(5) for clip in range(4)]}
    train, val = split(videos, share=0.25, group=r"_g(\d+)_")
    groups = [{path[5] for path in part["a"]} for part in (train, val)]
    assert not groups[0] & groups[1]
    assert len(val["a"]) == 8  # five are wanted; the second recording is taken whole
    assert split({"a": videos["a"][:4]}, share=0.5, group="g0")[1] == {"a": []}


def test_videos_in_no_subfolder_have_no_label(tmp_path):
    folder = folder_of(tmp_path, "x.mp4", "y.mp4")
    assert find_videos(folder) == {UNLABELLED: ["x.mp4", "y.mp4"]}
    assert main([str(folder), "--val=0"]) == 0
    assert (folder / "train.csv").read_text() == "path\nx.mp4\ny.mp4\n"
    assert not (folder / "classes.txt").exists() and not (folder / "val.csv").exists()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a/notes.txt",), "holds no videos"),
        (("a/x.mp4", "y.mp4"), "1 videos beside its class folders, y.mp4"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, names, sentence):
    with pytest.raises(ListError, match=sentence):
        find_videos(folder_of(tmp_path, *names))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"share": 1.0}, "a share of 1"),
        ({"share": 0.2, "group": "("}, "no regular expression"),
        ({"share": 0.2, "group": "z"}, "not found in a/x"),
    ],
)
def test_a_split_that_cannot_be_drawn_is_refused(wanted, sentence):
    with pytest.raises(ListError, match=sentence):
        split({"a": ["a/x", "a/y"]}, **wanted)


def test_another_list_is_not_overwritten(tmp_path, capsys):
    folder = folder_of(tmp_path, *(f"a/{i}.mp4" for i in range(9)))
    assert main([str(folder)]) == main([str(folder)]) == 0
    assert main([str(folder), "--seed=5"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_parts_of_a_set_share_their_classes(tmp_path, capsys):
    folder = folder_of(
        tmp_path, "train/b/1.mp4", "train/a/2.mp4", "valid/b/3.mp4", "valid/c/deeper/4.mp4"
    )
    assert main([str(folder)]) == 0
    assert "b: train 1, val 1" in capsys.readouterr().out
    assert (folder / "train.csv").read_text() == "path,label\ntrain/a/2.mp4,0\ntrain/b/1.mp4,1\n"
    text = "path,label\nvalid/b/3.mp4,1\nvalid/c/deeper/4.mp4,2\n"
    assert (folder / "val.csv").read_text() == text
    assert (folder / "classes.txt").read_text() == "a\nb\nc\n"


def test_a_part_for_validation_is_drawn_where_there_is_none(tmp_path):
    folder = folder_of(tmp_path, *(f"train/a/{i}.mp4" for i in range(5)), "test/a/x.mp4")
    assert main([str(folder)]) == 0
    lines = {name: (folder / f"{name}.csv").read_text().count("mp4") for name in ("train", "val")}
    assert lines == {"train": 4, "val": 1}
    assert (folder / "test.csv").read_text() == "path,label\ntest/a/x.mp4,0\n"


def test_kinetics_as_published_is_labelled_by_its_annotations(tmp_path):
    names = ["-3B32lodo2M_000059_000069.mp4", "zzzzzzzzzzz_000000_000010.mp4", "other.mp4"]
    folder = folder_of(tmp_path, *(f"train/{name}" for name in names), "replacement/r.mp4")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"zumba, slow",zzzzzzzzzzz,0,10,train\nabseiling,-3B32lodo2M,59,69,train\n'
    )
    assert find_parts(folder) == {
        "train": {"abseiling": [f"train/{names[0]}"], "zumba, slow": [f"train/{names[1]}"]}
    }
    (folder / "annotations" / "train.csv").write_text("id,label\n1,2\n")
    with pytest.raises(ListError, match="columns youtube_id and label"):
        find_parts(folder)


def test_a_class_may_be_called_train(tmp_path):
    folder = folder_of(tmp_path, "train/1.mp4", "bus/2.mp4")
    assert find_parts(folder) == {}
    assert find_videos(folder) == {"bus": ["bus/2.mp4"], "train": ["train/1.mp4"]}


def test_a_part_without_classes_is_listed_without_labels(tmp_path, capsys):
    folder = folder_of(tmp_path, "train/a/1.mp4", "train/a/2.mp4", "test/3.mp4")
    assert main([str(folder)]) == 0
    assert "without labels: test 1" in capsys.readouterr().out
    assert (folder / "test.csv").read_text() == "path\ntest/3.mp4\n"
    assert (folder / "classes.txt").read_text() == "a\n"


def test_two_folders_for_one_list_are_refused(tmp_path):
    with pytest.raises(ListError, match=r"not the only folder for val\.csv"):
        find_parts(folder_of(tmp_path, "val/a/1.mp4", "valid/a/2.mp4"))
