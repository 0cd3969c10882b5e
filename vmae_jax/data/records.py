"""ArrayRecord shards of videos, as `prepare` writes them: layout, writing, and the source.

A prepared set is a folder:
  dataset.json             kind, counts, hashes, settings, versions; what makes the folder a set
  index.csv, classes.txt   names and labels in the order of the records; a manifest like any other
  *.array_record           the shards; record k of shard s is row `videos of the shards before` + k

A record is one video: 4 bytes `vmr1`, 4 bytes length of the header (unsigned, little-endian), the
header (JSON, UTF-8), then its parts one after another. The header says how long each part is
(`sizes`) and what they are (`kind`): "mp4", one part, an MP4 file; "jpeg", one JPEG file a frame.
It also holds `name`, `label`, `fps`, `width`, `height`, `frames` and `source`, where it came from.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vmae_jax.data import storage
from vmae_jax.data.manifest import Manifest, ManifestError, read_manifest
from vmae_jax.data.source import Source
from vmae_jax.data.stored import EncodedPictures, EncodedVideo, StoredVideo
from vmae_jax.data.video import Limits, VideoError

KINDS = ("mp4", "jpeg")
FACTS = "dataset.json"
INDEX = "index.csv"
_VERSION = 1
_MAGIC = b"vmr1"
_PREFIX = struct.Struct("<4sI")
_BUFFER_BYTES = 1 << 15
_OPEN_SHARDS = 256  # per process; a set may have more than a process may open files


def pack(header: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
    """Makes a record of a video.

    Args:
      header: facts that JSON can hold; `kind`, `name` and `label` at least.
      parts: the file, or the pictures in order.
    """
    text = json.dumps({**header, "sizes": [len(part) for part in parts]}, ensure_ascii=False)
    encoded = text.encode()
    return b"".join((_PREFIX.pack(_MAGIC, len(encoded)), encoded, *parts))


def unpack(record: bytes, where: str) -> tuple[dict[str, Any], list[memoryview]]:
    """Takes a record apart: its header and its parts.

    Raises:
      VideoError: it is not a record of this layout, or not whole.
    """
    try:
        magic, length = _PREFIX.unpack_from(record)
        if magic != _MAGIC:
            raise ValueError
        begin = _PREFIX.size + length
        header = json.loads(record[_PREFIX.size : begin])
        stops = list(itertools.accumulate(header["sizes"], initial=begin))
    except (struct.error, ValueError, LookupError, TypeError):
        raise VideoError(where, "is not a record of a video (see docs/data.md)") from None
    if stops[-1] != len(record) or header.get("kind") not in KINDS:
        raise VideoError(where, "is a damaged record, or one of a later version")
    view = memoryview(record)
    return header, [view[a:b] for a, b in itertools.pairwise(stops)]


@dataclass(frozen=True)
class Shard:
    """One file of a prepared set: its name in the folder, its records, and its content."""

    file: str
    videos: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetFacts:
    """What `dataset.json` holds.

    Attributes:
      kind: of the records, one of KINDS.
      videos: records in all.
      sha256: of what the shards, the index and the class names hold.
      shards: in order.
      settings: what `prepare` was asked for.
      versions: of the programs that made it.
    """

    kind: str
    videos: int
    sha256: str
    shards: tuple[Shard, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str) -> DatasetFacts:
        """Reads the text of `dataset.json`.

        Raises:
          ManifestError: it is not such a file, or of another version.
        """
        try:
            facts = json.loads(text)
            if (version := facts.pop("version")) != _VERSION:
                raise ManifestError(
                    f"{path}: version {version!r} of the layout; this program reads {_VERSION}. "
                    "Prepare the set again, or use the program that made it."
                )
            facts["shards"] = tuple(Shard(**shard) for shard in facts["shards"])
            return cls(**facts)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(
                f"{path}: not a file that vmae_jax.tools.prepare wrote ({error})."
            ) from None


class RecordSet(Source):
    """A prepared set."""

    def __init__(self, folder: str):
        """
        Args:
          folder: of the set, local or in a bucket.

        Raises:
          ManifestError: a file of it is missing, or they do not belong together.
        """
        path = storage.join(folder, FACTS)
        try:
            text = storage.read(path).decode()
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read: {error.strerror or error}.") from None
        facts = DatasetFacts.from_json(text, path)
        self._folder, self._shards = folder, facts.shards
        self._check_files()
        self._index: Manifest = read_manifest(
            storage.join(folder, INDEX), root="", style="csv", allow_outside=True
        )
        self._stops = list(itertools.accumulate(shard.videos for shard in facts.shards))
        if not len(self._index) == facts.videos == self._stops[-1]:
            raise ManifestError(
                f"{folder}: {FACTS} counts {facts.videos} videos, its shards {self._stops[-1]}, "
                f"{INDEX} {len(self._index)}; the files are of different sets. Prepare it again."
            )
        self.style = f"prepared set ({facts.kind})"
        self.sha256, self.class_names = facts.sha256, self._index.class_names
        self.num_classes = self._index.num_classes

    def _check_files(self) -> None:
        if storage.is_remote(self._folder) and not self._folder.startswith("gs://"):
            raise ManifestError(
                f"{self._folder}: shards are read from local folders and gs:// only; mount the "
                "bucket, or copy the set to a local disk."
            )
        for shard in self._shards:
            path = storage.join(self._folder, shard.file)
            if not storage.is_remote(path) and storage.size(path) != shard.bytes:
                raise ManifestError(
                    f"{path}: is missing or does not have the {shard.bytes} bytes that {FACTS} "
                    "says; copy it again, or run prepare again."
                )

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> str:
        """Path in the list that was prepared."""
        return self._index.name(i)

    def label(self, i: int) -> int:
        """As in the index."""
        return int(self._index.labels[i])

    def where(self, i: int) -> str:
        """Name of the video, path of the shard, and number of the record in it."""
        path, place = self._place(i)
        return f"{self.name(i)} ({path}[{place}])"

    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """See `Source`."""
        path, place = self._place(i)
        where = self.where(i)
        try:
            record = _reader(path).read([place])[0]
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            _reader.cache_clear()  # a reader stays bad once it has failed, the storage may not
            raise VideoError(where, f"cannot be read ({error})") from None
        if len(record) > limits.max_bytes:
            raise VideoError(where, f"{len(record)} bytes exceed the limit of {limits.max_bytes}")
        header, parts = unpack(record, where)
        label = int(self._index.labels[i])
        if header["kind"] == "jpeg":
            return EncodedPictures(where, tuple(parts), label, header.get("fps") or 0.0)
        return EncodedVideo(where, bytes(parts[0]), label, timed=bool(header.get("fps")))

    def _place(self, i: int) -> tuple[str, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"Video {i} of a set of {len(self)}.")
        number = bisect.bisect_right(self._stops, i)
        first = self._stops[number] - self._shards[number].videos
        return storage.join(self._folder, self._shards[number].file), i - first


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _reader(path: str):
    from array_record.python import array_record_module  # not on every platform

    # No reading ahead and small buffers: records are wanted one by one, in no order.
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=_BUFFER_BYTES
    )
