"""The kinds of sources, and how `config.data.manifest` names one.

a list of files                 train.csv, and the list styles of `manifest`
a set that `prepare` made       its folder
a set of TensorFlow Datasets    tfds:NAME@SPLIT; see `public_sets`
a mixture of other sources      hybrid.toml; see `mixture`
"""

from __future__ import annotations

import functools
from pathlib import Path

from vmae_jax.data import storage
from vmae_jax.data.folders import DEFAULT_TEMPLATES
from vmae_jax.data.manifest import Clip, Manifest, ManifestError, read_manifest
from vmae_jax.data.mixture import read_mixture
from vmae_jax.data.public_sets import PREFIX, PublicSet
from vmae_jax.data.records import FACTS, RecordSet
from vmae_jax.data.source import Source
from vmae_jax.data.stored import EncodedVideo, PictureFolder, StoredVideo
from vmae_jax.data.video import Limits, VideoError, read_bytes


class ListedFiles(Source):
    """The videos of a manifest: files and folders of pictures, local or in a bucket."""

    def __init__(
        self, manifest: Manifest, templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES
    ):
        self.manifest, self.templates = manifest, templates
        self.style = manifest.style
        self.sha256, self.class_names = manifest.sha256, manifest.class_names
        self.num_classes = manifest.num_classes

    def __len__(self) -> int:
        return len(self.manifest)

    def name(self, i: int) -> str:
        """Path as listed, relative to the root."""
        return self.manifest.name(i)

    def where(self, i: int) -> str:
        """Full path."""
        return self.manifest[i].path

    def label(self, i: int) -> int:
        """As listed."""
        return int(self.manifest.labels[i])

    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """See `Source`; the pictures of a folder are read when they are decoded."""
        return fetch_clip(self.manifest[i], self.templates, limits)


def fetch_clip(clip: Clip, templates: tuple[tuple[str, str], ...], limits: Limits) -> StoredVideo:
    """Reads a row of a manifest from storage; see `Source.fetch`."""
    if clip.total_frames >= 0:
        return PictureFolder(clip, clip.label, templates)
    data = _video_bytes(clip.path, limits)
    return EncodedVideo(clip.path, data, clip.label, clip.start, clip.end)


def open_source(
    manifest: str,
    *,
    root: str = "",
    style: str = "auto",
    allow_outside: bool = False,
    templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES,
) -> Source:
    """Opens what `config.data.manifest` names.

    Args:
      manifest: one of the kinds above, local or in a bucket.
      root: folder or bucket that listed paths are relative to; "": that of the list or mixture. Of
        a TFDS set, its `data_dir`. A prepared set needs none.
      style: of a list, or "auto".
      allow_outside: accept listed paths that leave the root.
      templates: names of pictures in folders; see `folders`.

    Raises:
      ManifestError: it cannot be used; says where and why.
    """
    if manifest.endswith(".toml"):
        open_part = functools.partial(
            open_source, style=style, allow_outside=allow_outside, templates=templates
        )
        return read_mixture(manifest, root=root or storage.parent(manifest), open_part=open_part)
    if manifest.startswith(PREFIX):
        return PublicSet(manifest, root)
    if _is_prepared(manifest):
        return RecordSet(manifest.removesuffix(FACTS))
    if not storage.is_remote(manifest) and Path(manifest).is_dir():
        raise ManifestError(
            f"{manifest}: a folder without {FACTS}. Name a list of videos; or, if this is a set "
            "that is being prepared, run prepare again, which goes on where it was ended."
        )
    listed = read_manifest(
        manifest,
        root=root or storage.parent(manifest),
        style=style,
        allow_outside=allow_outside,
    )
    return ListedFiles(listed, templates)


def _is_prepared(manifest: str) -> bool:
    if manifest.endswith(FACTS):
        return True
    return (
        storage.size(manifest) is None and storage.size(storage.join(manifest, FACTS)) is not None
    )


def _video_bytes(path: str, limits: Limits) -> bytes:
    if not storage.is_remote(path):
        return read_bytes(path, limits)
    try:
        data = storage.read(path, limits.max_bytes + 1)
    except FileNotFoundError:
        raise VideoError(path, "the file does not exist") from None
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from None
    if len(data) > limits.max_bytes:
        raise VideoError(path, f"exceeds the limit of {limits.max_bytes} bytes")
    if not data:
        raise VideoError(path, "the file is empty")
    return data
