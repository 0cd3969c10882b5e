r"""Makes lists of a folder of videos: the name of a subfolder is the class of what lies in it.

    python -m vmae_jax.tools.list_videos my_clips
    python -m vmae_jax.tools.list_videos ucf101 --out=lists --val=0.3 --group='_g(\d+)_'
    python -m vmae_jax.tools.list_videos kinetics700

Writes train.csv and val.csv (`path,label`, paths from the folder) and classes.txt. Subfolders of a
class belong to it; videos that lie beside no subfolder are listed without labels. A set that comes
in parts (folders train, val, test) gets a list of each. Nothing is opened: `tools/check_data` does
that.

Exit codes: 0, written; 1, not, and why.
"""

import argparse
import collections
import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vmae_jax.data.manifest import CLASSES
from vmae_jax.errors import UserError

# Endings of the containers that data/video.py reads.
_ENDING = re.compile(
    r"\.(3gp|asf|avi|flv|gif|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|og[gv]|ts|webm|wmv)$", re.IGNORECASE
)
UNLABELLED = ""  # in the place of a class
# Folders of the parts of a set -> names of their lists.
_PARTS = {
    **{"train": "train", "training": "train", "test": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
_ANNOTATIONS, _REPLACEMENTS = "annotations", "replacement"  # beside the parts of Kinetics
_ID_LENGTH = 11  # of a YouTube video, with which Kinetics' file names begin
_MOST_LINES = 20

Videos = Mapping[str, Sequence[str]]


class ListError(UserError):
    """A folder of which no list can be made, or a split that is not possible."""


def find_videos(folder: Path) -> dict[str, list[str]]:
    """Finds the videos of a folder, by their endings.

    Args:
      folder: its subfolders are classes. Hidden files and folders are passed over.

    Returns:
      class -> paths from `folder`, both sorted; `UNLABELLED` is the only class of a folder whose
      videos lie in no subfolder.

    Raises:
      ListError: no folder, no videos, or some in subfolders and some not.
    """
    if not folder.is_dir():
        raise ListError(f"{folder} is not a folder; name the one that holds the class folders")
    videos = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not part.name.startswith("."):
            found = [path for path in part.rglob("*") if _is_video(path, folder)]
            videos[part.name] = sorted(path.relative_to(folder).as_posix() for path in found)
    videos = {name: paths for name, paths in videos.items() if paths}
    loose = sorted(path.name for path in folder.iterdir() if _is_video(path, folder))
    if loose and videos:
        raise ListError(
            f"{folder} holds {len(loose)} videos beside its class folders, {loose[0]} for one; "
            "move each into the folder of its class"
        )
    if not loose and not videos:
        raise ListError(
            f"{folder} holds no videos; expected files like {folder}/CLASS/NAME.mp4 (or .mov, "
            ".mkv, .webm, .avi and their like)"
        )
    return videos or {UNLABELLED: loose}


def find_parts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Finds the videos of a set that comes in parts, as Kinetics-400, -600 and -700 do.

    Args:
      folder: holds no other folders than train, val and test (or training, valid, validation), and
        `annotations` and `replacement`, as Kinetics is published. A part holds class folders; or,
        where there is `annotations/PART.csv`, videos whose names begin with the id that its
        columns `youtube_id` and `label` give a class. Videos that it does not name are left out.

    Returns:
      name of the list -> class -> paths from `folder`, sorted, all with the same classes but those
      whose videos have none; {} for a folder that is no such set.

    Raises:
      ListError: a part cannot be listed, or two are of one name.
    """
    inside = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    folders = sorted(path for path in inside if path.name in _PARTS)
    beside = {path.name for path in inside} - _PARTS.keys() - {_ANNOTATIONS, _REPLACEMENTS}
    if not folders or beside:
        return {}
    parts: dict[str, dict[str, list[str]]] = {}
    for part in folders:
        name = _PARTS[part.name]
        if name in parts:
            raise ListError(f"{part} is not the only folder for {name}.csv; leave one of them")
        table = folder / _ANNOTATIONS / f"{part.name}.csv"
        found = _annotated(part, table) if table.is_file() else find_videos(part)
        parts[name] = {c: [f"{part.name}/{path}" for path in paths] for c, paths in found.items()}
    classes = sorted(set().union(*parts.values()) - {UNLABELLED})
    return {
        name: videos if UNLABELLED in videos else {c: videos.get(c, []) for c in classes}
        for name, videos in sorted(parts.items())
    }


def _annotated(part: Path, table: Path) -> dict[str, list[str]]:
    """Class -> paths from the part's folder, by the publisher's annotations."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            # Classes of a test may be held back.
            rows = csv.DictReader(file)
            classes = {row["youtube_id"]: row.get("label") or UNLABELLED for row in rows}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise ListError(
            f"{table} cannot be read as annotations of Kinetics, a CSV file with the columns "
            f"youtube_id and label: {error!r}"
        ) from None
    found = collections.defaultdict(list)
    for path in sorted(path for path in part.rglob("*") if _is_video(path, part)):
        if (video := path.name[:_ID_LENGTH]) in classes:
            found[classes[video]].append(path.relative_to(part).as_posix())
    if not found:
        raise ListError(
            f"{part} holds no video that {table} names; names like -3B32lodo2M_000059_000069.mp4 "
            "are expected"
        )
    if len(found) > 1:  # beside videos with a class those without are of no use
        found.pop(UNLABELLED, None)
    return dict(found)


def split(
    videos: Videos, *, share: float, seed: int = 0, group: str = ""
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Draws a part of each class for validation.

    Args:
      videos: class -> paths.
      share: of the videos of each class, rounded; but at least one is drawn and one is left. A
        class with a single video or group is left whole.
      seed: another seed draws others.
      group: a regular expression on paths. Videos of a class in which it finds the same (in its
        first group, if it has one) stay on one side, e.g. the clips cut from one recording. So
        more than the share may be drawn. "": every video by itself.

    Returns:
      (rest, drawn), class -> paths in their order.

    Raises:
      ListError: a share outside of [0, 1), or a pattern that is none or is not found in a path.
    """
    if not 0.0 <= share < 1.0:
        raise ListError(f"a share of {share:g} cannot be drawn; give one from 0 to less than 1")
    rest, drawn = {}, {}
    for name, paths in videos.items():
        chosen = set(_drawn(paths, share, np.random.default_rng([seed, *name.encode()]), group))
        rest[name] = [path for path in paths if path not in chosen]
        drawn[name] = [path for path in paths if path in chosen]
    return rest, drawn


def write_lists(videos: Mapping[str, Videos], out: Path) -> list[Path]:
    """Writes a list of each part, and the names of the classes.

    Args:
      videos: name of the list -> class -> paths; all with the same classes, or without any.
      out: folder; made if missing. Files with the same content may be there.

    Returns:
      the files.

    Raises:
      ListError: another list is there, or a path or the folder cannot be written.
    """
    classes = next((list(part) for part in videos.values() if UNLABELLED not in part), ())
    texts = {f"{name}.csv": _as_csv(part) for name, part in videos.items()}
    if classes:
        texts[CLASSES] = "".join(f"{name}\n" for name in classes)
    try:
        for name, text in texts.items():
            if (out / name).exists() and (out / name).read_text("utf-8") != text:
                raise ListError(
                    f"{out / name} is there already and says something else; delete it, or name "
                    "another folder with --out"
                )
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, "utf-8")
    except UnicodeEncodeError as error:
        raise ListError(f"a name that is not UTF-8 cannot be listed: {error.object!r}") from None
    except OSError as error:
        raise ListError(f"{out}: the lists cannot be written: {error}") from None
    return [out / name for name in texts]


def _is_video(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return bool(_ENDING.search(path.name)) and not hidden and path.is_file()


def _drawn(paths: Sequence[str], share: float, rng: np.random.Generator, group: str) -> list[str]:
    """The videos of one class that are drawn."""
    groups = collections.defaultdict(list)
    for path in paths:
        groups[_group(path, group)].append(path)
    wanted = max(1, round(share * len(paths)))
    drawn: list[str] = []
    if share > 0:
        names = sorted(groups)
        for i in rng.permutation(len(names))[:-1]:  # one is always left
            if len(drawn) >= wanted:
                break
            drawn += groups[names[i]]
    return drawn


def _group(path: str, pattern: str) -> str:
    if not pattern:
        return path
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise ListError(f"--group={pattern} is no regular expression: {error}") from None
    if not found:
        raise ListError(f"--group={pattern} is not found in {path}")
    return found[1] if found.re.groups else found[0]


def _as_csv(videos: Videos) -> str:
    labelled = list(videos) != [UNLABELLED]
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["path", "label"] if labelled else ["path"])
    for label, paths in enumerate(videos.values()):
        table.writerows([path, label] if labelled else [path] for path in paths)
    return file.getvalue()


def _describe(parts: Mapping[str, Videos]) -> str:
    """Videos of each class in each part."""
    lines = []
    for name in dict.fromkeys(name for videos in parts.values() for name in videos):
        known = {part: videos[name] for part, videos in parts.items() if name in videos}
        counts = ", ".join(f"{part} {len(paths)}" for part, paths in known.items())
        lines.append(f"  {name or 'without labels'}: {counts}")
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"  ... and {len(lines) - _MOST_LINES} classes more"]
    totals = ", ".join(f"{part} {sum(map(len, videos.values()))}" for part, videos in parts.items())
    return "\n".join([*lines, f"Videos: {totals}."])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds a folder for each class, or part")
    parser.add_argument("--out", type=Path, help="folder for the lists; default: the same")
    parser.add_argument("--val", type=float, default=0.2, help="share of each class (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--group", default="", metavar="REGEX", help="what it finds in a path stays on one side"
    )
    args = parser.parse_args(argv)
    try:
        parts = find_parts(args.folder) or {"train": find_videos(args.folder)}
        if "train" in parts and "val" not in parts:
            train, val = split(parts["train"], share=args.val, seed=args.seed, group=args.group)
            parts |= {"train": train, **({"val": val} if any(val.values()) else {})}
        written = write_lists(parts, args.out or args.folder)
    except UserError as error:
        print(f"list_videos: {error}", file=sys.stderr)
        return 1
    print(_describe(parts))
    print("Wrote " + ", ".join(map(str, written)) + f"; their paths begin at {args.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
