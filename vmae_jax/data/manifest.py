"""Lists of videos: the CSV of this project and the list files of the published ones.

A manifest is read whole, checked line by line, and kept as a few flat arrays, so that millions of
rows fit and travel cheaply to worker processes. Whether the files exist is not asked here; that is
`tools/check_data`.

Styles:
  csv               header `path,label,start,end`; all but `path` optional; times in seconds
  path_label        `path label`, split at the last space; `.mp4` is added to a name without a dot
  path_start_total  `path start total`; total -1: a video file, else a folder of `total` frames
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vmae_jax.data import storage
from vmae_jax.errors import UserError

STYLES = ("csv", "path_label", "path_start_total")
CLASSES = "classes.txt"  # beside a list: class names, label 0 first
_CSV_COLUMNS = ("path", "label", "start", "end")


class ManifestError(UserError, ValueError):
    """A manifest that cannot be used; the message names file, line, column and remedy."""


@dataclass(frozen=True)
class Clip:
    """One row: a video file, a stretch of one, or a folder of frames.

    Attributes:
      path: full path of the file or folder.
      label: class number, -1 if none.
      start: seconds from the first frame at which the usable part begins; None: at the beginning.
      end: seconds at which it ends (not included); None: at the end.
      first_frame: number in the file name of the first frame of a folder; 0 for a video file.
      total_frames: frames in the folder, -1 for a video file.
    """

    path: str
    label: int
    start: float | None
    end: float | None
    first_frame: int
    total_frames: int


class Manifest:
    """A checked list of clips. `len()`, indexing, and the facts that identify the list.

    Attributes:
      labels: int32 [n], -1 where there is none.
      num_classes: number of class names if there are any, else the largest label plus one.
      class_names: lines of `classes.txt` beside the manifest; () without that file.
      sha256: of the manifest's bytes.
      style: the style that was read.
    """

    def __init__(
        self,
        rows: list[tuple[str, int, float, float, int, int]],
        *,
        root: str,
        class_names: tuple[str, ...],
        sha256: str,
        style: str,
    ):
        names, labels, starts, ends, firsts, totals = zip(*rows, strict=True)
        encoded = [name.encode() for name in names]
        self._names = b"".join(encoded)
        self._stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.labels = np.array(labels, np.int32)
        # NaN stands for None; most manifests have no times at all and keep no array for them.
        self._times = np.array([starts, ends], np.float64)
        self._frames = np.array([firsts, totals], np.int32)
        if np.isnan(self._times).all():
            self._times = None
        if (totals := self._frames[1]).max() < 0 and not self._frames[0].any():
            self._frames = None
        self.root, self.class_names, self.sha256, self.style = root, class_names, sha256, style
        self.num_classes = len(class_names) or int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """Path of row `i` as listed, relative to the root."""
        begin = self._stops[i - 1] if i else 0
        return self._names[begin : self._stops[i]].decode()

    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < len(self):
            raise IndexError(f"Row {i} of a manifest of {len(self)} rows.")
        start, end = (math.nan, math.nan) if self._times is None else self._times[:, i].tolist()
        first, total = (0, -1) if self._frames is None else self._frames[:, i].tolist()
        return Clip(
            path=storage.join(self.root, self.name(i)),
            label=int(self.labels[i]),
            start=None if math.isnan(start) else start,
            end=None if math.isnan(end) else end,
            first_frame=first,
            total_frames=total,
        )


def read_manifest(
    path: str | Path, *, root: str | Path, style: str = "auto", allow_outside: bool = False
) -> Manifest:
    """Reads and checks a manifest.

    Args:
      path: the text file, UTF-8, local or in a bucket.
      root: folder (or bucket URL) that the listed paths are relative to.
      style: one of STYLES, or "auto": csv if the first line is a header with `path`;
        path_start_total if every line ends in two integers; else path_label.
      allow_outside: accept paths that leave the root (absolute ones, or by `..`).

    Raises:
      ManifestError: the file or a line of it is unusable.
    """
    path = str(path)
    try:
        raw = storage.read(path)
    except OSError as error:
        raise ManifestError(
            f"{path}: the manifest cannot be read: {error.strerror or error}."
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise ManifestError(
            f"{path}, line {line}, column {column}: not UTF-8; convert the file."
        ) from None
    if style == "auto":
        style = _guess_style(text)
    if style not in STYLES:
        raise ManifestError(
            f"{path}: unknown style {style!r}; choose one of {', '.join(('auto', *STYLES))}."
        )
    place = _Place(path, str(root), allow_outside)
    if style == "csv":
        rows = _read_csv(text, place)
    else:
        rows = _read_lines(text, place, _path_label if style == "path_label" else _start_total)
    if not rows:
        raise ManifestError(f"{path}: the manifest lists no videos.")
    class_names = _read_class_names(storage.join(storage.parent(path), CLASSES))
    largest = max(row[1] for row in rows)
    if class_names and largest >= len(class_names):
        line = next(row[6] for row in rows if row[1] == largest)
        raise ManifestError(
            f"{path}, line {line}: label {largest}, but classes.txt names only "
            f"{len(class_names)} classes (0 to {len(class_names) - 1}); correct one of the two."
        )
    return Manifest(
        [row[:6] for row in rows],
        root=str(root),
        class_names=class_names,
        sha256=hashlib.sha256(raw).hexdigest(),
        style=style,
    )


@dataclass(frozen=True)
class _Place:
    """Where rows come from and where their paths may point; words the errors."""

    path: str
    root: str
    allow_outside: bool

    def error(self, line: int, column: int | str, problem: str) -> ManifestError:
        return ManifestError(f"{self.path}, line {line}, column {column}: {problem}")

    def name(self, name: str, line: int, column: int | str) -> str:
        """Checks a listed path; absolute paths under the root become relative."""
        if not name:
            raise self.error(line, column, "the path is empty; remove the line or name a file.")
        if "\0" in name:
            raise self.error(line, column, "the path holds a NUL character.")
        pure = PurePosixPath(name)
        if (pure.is_absolute() or "://" in name) and name.startswith(self.root.rstrip("/") + "/"):
            name = name[len(self.root.rstrip("/")) + 1 :]
            pure = PurePosixPath(name)
        leaves = pure.is_absolute() or "://" in name or ".." in pure.parts
        if leaves and not self.allow_outside:
            raise self.error(
                line,
                column,
                f"{name!r} leaves the root {self.root!r}; list paths relative to the root, or "
                "allow paths outside of it.",
            )
        return name

    def integer(self, text: str, line: int, column: int | str, what: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise self.error(line, column, f"{what} must be an integer, got {text!r}.") from None
        if not -(2**31) <= value < 2**31:
            raise self.error(line, column, f"{what} {value} does not fit in 32 bits.")
        return value

    def label(self, text: str, line: int, column: int | str) -> int:
        label = self.integer(text, line, column, "the label")
        if label < -1:
            raise self.error(line, column, f"the label must be 0 or more (-1: none), got {label}.")
        return label


def _guess_style(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and "path" in [field.strip().strip('"') for field in lines[0].split(",")]:
        return "csv"

    def ends_in_two_integers(line: str) -> bool:
        parts = line.rsplit(maxsplit=2)
        return len(parts) == 3 and all(p.lstrip("-").isdigit() for p in parts[1:])

    return "path_start_total" if lines and all(map(ends_in_two_integers, lines)) else "path_label"


def _read_lines(text: str, place: _Place, parse) -> list[tuple]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # names may hold odd characters
        if line.strip():
            rows.append((*parse(line.rstrip(), number, place), number))
    return rows


def _path_label(line: str, number: int, place: _Place) -> tuple:
    name, space, label = line.rpartition(" ")
    if not space:
        raise place.error(
            number,
            1,
            f"expected `path label` with a space between, got {line!r}; lists of paths "
            "without labels are written as CSV with the header `path`.",
        )
    if "." not in name.rsplit("/", 1)[-1]:
        name += ".mp4"  # as the released loaders do
    name = place.name(name.rstrip(), number, 1)
    column = len(line) - len(label) + 1
    return name, place.label(label, number, column), math.nan, math.nan, 0, -1


def _start_total(line: str, number: int, place: _Place) -> tuple:
    parts = line.rsplit(" ", 2)
    if len(parts) != 3:
        raise place.error(number, 1, f"expected `path start total`, got {line!r}.")
    name, start_text, total_text = parts
    total_column = len(line) - len(total_text) + 1
    start_column = total_column - 1 - len(start_text)
    start = place.integer(start_text, number, start_column, "the start frame")
    total = place.integer(total_text, number, total_column, "the number of frames")
    if total == 0 or total < -1:
        raise place.error(
            number,
            total_column,
            f"the number of frames must be positive (-1: a video file), got {total}.",
        )
    if start < 0:
        raise place.error(number, start_column, f"the start frame must be 0 or more, got {start}.")
    name = place.name(name, number, 1)
    # For a video file the released loaders ignore the start; so do we.
    return name, -1, math.nan, math.nan, start if total > 0 else 0, total


def _read_csv(text: str, place: _Place) -> list[tuple]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, header = [], None
    try:
        for fields in reader:
            number = reader.line_num
            if len(fields) < 2 and not "".join(fields).strip():  # an empty line
                continue
            if header is None:
                header = _csv_header(fields, number, place)
            else:
                rows.append((*_csv_row(fields, header, number, place), number))
    except csv.Error as error:
        raise place.error(reader.line_num, 1, f"not valid CSV ({error}).") from None
    return rows


def _csv_header(fields: list[str], number: int, place: _Place) -> list[str]:
    header = [field.strip() for field in fields]
    for i, field in enumerate(header):
        if field not in _CSV_COLUMNS or field in header[:i]:
            raise place.error(
                number,
                i + 1,
                f"unknown or repeated column {field!r} in the header; the columns "
                f"are {','.join(_CSV_COLUMNS)} (all but path optional).",
            )
    if "path" not in header:
        raise place.error(number, 1, f"the header {','.join(header)!r} has no column `path`.")
    return header


def _csv_row(fields: list[str], header: list[str], number: int, place: _Place) -> tuple:
    if len(fields) != len(header):
        raise place.error(
            number,
            min(len(fields), len(header)) + 1,
            f"{len(fields)} fields, but the header names {len(header)}; quote paths with commas.",
        )
    row = {
        name: (field.strip(), f"{i} ({name})")
        for i, (name, field) in enumerate(zip(header, fields, strict=True), start=1)
    }
    name = place.name(row["path"][0], number, row["path"][1])
    label_text, label_column = row.get("label", ("", ""))
    label = place.label(label_text, number, label_column) if label_text else -1
    start = _seconds(*row.get("start", ("", "")), number, place)
    end = _seconds(*row.get("end", ("", "")), number, place)
    if end <= (0.0 if math.isnan(start) else start):
        raise place.error(number, row["end"][1], f"the end {end:g} s is not after the start.")
    return name, label, start, end, 0, -1


def _seconds(text: str, column: str, number: int, place: _Place) -> float:
    """Parses a time; an empty field is NaN."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise place.error(number, column, f"expected seconds, 0 or more, got {text!r}.")
    return value


def _read_class_names(path: str) -> tuple[str, ...]:
    if storage.size(path) is None:
        return ()
    text = storage.read(path).decode("utf-8-sig")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
