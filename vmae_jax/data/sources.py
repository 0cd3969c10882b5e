"""Where videos come from, behind one interface: a numbered set of which any one can be fetched.

`config.data.manifest` names a source by its form; `open_source` finds out which kind it is. A
source is small and can be pickled: workers get a copy and open what they need.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from vmae_jax.data import storage
from vmae_jax.data.folders import DEFAULT_TEMPLATES
from vmae_jax.data.manifest import Manifest, read_manifest
from vmae_jax.data.order import Share
from vmae_jax.data.stored import EncodedVideo, PictureFolder, StoredVideo
from vmae_jax.data.video import Limits, VideoError, read_bytes


class Source(abc.ABC):
    """A numbered set of videos.

    Attributes:
      style: what kind of source it is, for reports.
      sha256: identifies the set, its order and its labels; kept in checkpoints.
      class_names: by label; () if there are none.
      num_classes: number of class names if there are any, else the largest label plus one; 0
        without labels.
    """

    style: str
    sha256: str
    class_names: tuple[str, ...]
    num_classes: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """What video `i` is called in lists and reports."""

    @abc.abstractmethod
    def where(self, i: int) -> str:
        """Where video `i` lies, for messages and for rules that go by path."""

    @abc.abstractmethod
    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """Reads video `i` from storage, without decoding it.

        Raises:
          VideoError: it is not there, cannot be read, or exceeds a limit.
        """

    @property
    def shares(self) -> tuple[Share, ...]:
        """How often an epoch takes from which part; one part, once, unless this is a mixture."""
        return (Share(len(self), len(self)),)

    def overrides(self, i: int) -> Mapping[str, Any]:
        """Fields of PipelineOptions that are not the run's for video `i`."""
        return {}


class ListedFiles(Source):
    """The videos of a manifest: files and folders of pictures, local or in a bucket."""

    def __init__(
        self, manifest: Manifest, templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES
    ):
        self.manifest, self._templates = manifest, templates
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

    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """See `Source`; the pictures of a folder are read when they are decoded."""
        clip = self.manifest[i]
        if clip.total_frames >= 0:
            return PictureFolder(clip, self._templates)
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
      manifest: a list of videos; see `manifest`.
      root: folder or bucket that its paths are relative to; "": its own folder.
      style: of the list, or "auto".
      allow_outside: accept paths that leave the root.
      templates: names of pictures in folders; see `folders`.

    Raises:
      ManifestError: it cannot be used; says where and why.
    """
    listed = read_manifest(
        manifest,
        root=root or storage.parent(manifest),
        style=style,
        allow_outside=allow_outside,
    )
    return ListedFiles(listed, templates)


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
