"""One video as its source keeps it: an encoded file, a folder of pictures.

All kinds have a `label` (-1: none) and `read`, so what follows need not ask which one it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vmae_jax.data.folders import DEFAULT_TEMPLATES, read_folder
from vmae_jax.data.manifest import Clip
from vmae_jax.data.video import Limits, read_frames

Choose = Callable[[int], Sequence[int]] | Sequence[int]


class StoredVideo(Protocol):
    """What a source hands out."""

    @property
    def label(self) -> int:
        """Class number, -1 if there is none."""

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """Decodes chosen frames.

        Args:
          choose: frame indices, or a function from the number of usable frames to indices.
          limits: caps; exceeding one is a VideoError.

        Returns:
          uint8 [n, H, W, 3], RGB, upright.

        Raises:
          VideoError: the video or a frame needed is unusable.
        """


@dataclass(frozen=True)
class EncodedVideo:
    """The bytes of a video file; `start` and `end` (seconds) restrict the usable part."""

    where: str
    data: bytes
    label: int = -1
    start: float | None = None
    end: float | None = None

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""
        return read_frames(
            self.data, choose, limits, start=self.start, end=self.end, name=self.where
        )


@dataclass(frozen=True)
class PictureFolder:
    """A folder of numbered pictures, of which only the chosen ones are opened."""

    clip: Clip
    templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES

    @property
    def label(self) -> int:
        """See `StoredVideo`."""
        return self.clip.label

    @property
    def num_frames(self) -> int:
        """Pictures that the list promises."""
        return self.clip.total_frames

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""
        return read_folder(self.clip, choose, templates=self.templates, limits=limits)
