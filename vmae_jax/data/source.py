"""What a source of videos is: a numbered set of which any one can be fetched.

A source is small and can be pickled: workers get a copy and open what they need. The kinds that
there are, and how a config names them, are in `sources`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from vmae_jax.data.order import Share
from vmae_jax.data.stored import StoredVideo
from vmae_jax.data.video import Limits


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

    def label(self, i: int) -> int:
        """Class number of video `i`, if it is known without reading the video; else -1."""
        return -1

    @property
    def shares(self) -> tuple[Share, ...]:
        """How often an epoch takes from which part; one part, once, unless this is a mixture."""
        return (Share(len(self), len(self)),)

    def overrides(self, i: int) -> Mapping[str, Any]:
        """Fields of PipelineOptions that are not the run's for video `i`."""
        return {}
