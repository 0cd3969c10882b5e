"""Sets that TensorFlow Datasets prepared, read without TensorFlow: `tfds:NAME[@SPLIT]`.

The set must lie prepared on disk (or in a `gs://` bucket) in the file format array_record; `root`
is its `data_dir`. Its records are read through `data_source` as bytes and taken apart here, so that
pictures stay encoded until they are wanted. A video is a feature of one of two kinds:
  Sequence(Image)      the frames as pictures, under any name
  Text, or a scalar    the bytes of a video file, under the name `video`
TFDS's own feature `Video` needs TensorFlow even to be looked at, and is refused.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmae_jax.data.manifest import ManifestError
from vmae_jax.data.source import Source
from vmae_jax.data.stored import EncodedPictures, EncodedVideo, StoredVideo
from vmae_jax.data.video import Limits, VideoError

PREFIX = "tfds:"


@dataclass(frozen=True)
class _Opened:
    """A set in this process: its records, and which of their features are video and label."""

    records: Any
    sha256: str
    video: str
    is_pictures: bool
    label: str | None
    class_names: tuple[str, ...]


class PublicSet(Source):
    """A split of a prepared TFDS set."""

    style = "TFDS set"

    def __init__(self, name: str, data_dir: str):
        """
        Args:
          name: `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`; the split is "train" if none is named.
          data_dir: where TFDS keeps its sets; "": its default.

        Raises:
          ManifestError: there is no such set, or not one that can be read.
        """
        self._name, self._data_dir = name, data_dir
        opened = _open(name, data_dir)
        self._length = len(opened.records)
        self.sha256, self.class_names = opened.sha256, opened.class_names
        self.num_classes = len(opened.class_names)

    def __len__(self) -> int:
        return self._length

    def name(self, i: int) -> str:
        """The set and the number of the record; TFDS keeps no names."""
        return f"{self._name.removeprefix(PREFIX)}[{i}]"

    def where(self, i: int) -> str:
        """See `Source`."""
        return f"{self._name}[{i}]"

    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """See `Source`."""
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= i < len(self):
            raise IndexError(f"Video {i} of a set of {len(self)}.")
        opened, where = _open(self._name, self._data_dir), self.where(i)
        try:
            record = opened.records[i]
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            _open.cache_clear()  # a reader stays bad once it has failed, the storage may not
            raise VideoError(where, f"cannot be read ({error})") from None
        if len(record) > limits.max_bytes:
            raise VideoError(where, f"{len(record)} bytes exceed the limit of {limits.max_bytes}")
        features = tf_example_pb2.Example.FromString(record).features.feature
        parts = tuple(features[opened.video].bytes_list.value)
        if not parts or not parts[0]:
            raise VideoError(where, "holds no pictures" if opened.is_pictures else "is empty")
        label = features[opened.label].int64_list.value[0] if opened.label else -1
        if opened.is_pictures:
            return EncodedPictures(where, parts, label)
        return EncodedVideo(where, parts[0], label)


@functools.lru_cache(maxsize=16)  # readers cannot be pickled; each process opens its own
def _open(name: str, data_dir: str) -> _Opened:
    import tensorflow_datasets as tfds  # slow to import, and rarely needed

    found = re.fullmatch(r"tfds:([\w/:.]+)(?:@(.+))?", name)
    if not found:
        raise ManifestError(f"{name!r} is not of the form tfds:NAME[/CONFIG][:VERSION][@SPLIT].")
    split = found[2] or "train"
    try:
        builder = tfds.builder(found[1], data_dir=data_dir or None, try_gcs=False)
        video, is_pictures, label = _choose_features(name, builder.info.features)
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        facts = (builder.data_path / "dataset_info.json").read_bytes()
    except ManifestError:
        raise
    except ImportError as error:
        raise ManifestError(
            f"{name}: cannot be opened without TensorFlow ({error}); its features must be "
            "Sequence(Image), or bytes under the name `video`."
        ) from None
    except Exception as error:  # TFDS raises kinds of its own, with pages of text
        raise ManifestError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    return _Opened(
        records=records,
        sha256=hashlib.sha256(facts + split.encode()).hexdigest(),
        video=video,
        is_pictures=is_pictures,
        label=label,
        class_names=tuple(builder.info.features[label].names) if label else (),
    )


def _choose_features(name: str, features: Any) -> tuple[str, bool, str | None]:
    """Returns (name of the video feature, whether it is pictures, name of the label or None)."""
    import tensorflow_datasets as tfds

    pictures = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Sequence)
        and isinstance(feature.feature, tfds.features.Image)
    ]
    files = [
        key
        for key, feature in features.items()
        if key == "video" and feature.shape == () and np.dtype(feature.np_dtype) == np.dtype(object)
    ]
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(pictures + files) != 1:
        listed = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())
        raise ManifestError(
            f"{name}: expected one feature Sequence(Image), or bytes under the name `video`; its "
            f"features are {listed}."
        )
    return (pictures + files)[0], bool(pictures), labels[0] if len(labels) == 1 else None
