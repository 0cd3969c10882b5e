"""One video as its source keeps it: an encoded file, or pictures frame by frame.

All kinds have a `label` (-1: none) and `read`, so what follows need not ask which one it holds.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vmae_jax.data.folders import (
    DEFAULT_TEMPLATES,
    Choose,
    chosen_frames,
    decode_picture,
    picture_bytes,
    read_folder,
    stack_pictures,
)
from vmae_jax.data.manifest import Clip
from vmae_jax.data.video import Chooser, Limits, frame_times, iterate_frames, read_frames


class StoredVideo(Protocol):
    """What a source hands out."""

    @property
    def label(self) -> int:
        """Class number, -1 if there is none."""

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """Decodes chosen frames.

        Args:
          choose: frame indices, or a function from the number of usable frames and the frames per
            second (NaN where nobody knows) to indices.
          limits: caps; exceeding one is a VideoError.

        Returns:
          uint8 [n, H, W, 3], RGB, upright.

        Raises:
          VideoError: the video or a frame needed is unusable.
        """

    def frames(self, limits: Limits) -> Iterator[np.ndarray]:
        """Decodes all usable frames in order: uint8 [H, W, 3] each; raises as `read` does."""

    def times(self, count: int, limits: Limits) -> np.ndarray:
        """When the first `count` usable frames are shown: float64 [count], seconds from the first
        frame of the file, NaN where nobody knows; raises as `read` does."""

    def sha256(self) -> str:
        """Of the bytes that are stored; raises as `read` does."""


@dataclass(frozen=True)
class EncodedVideo:
    """The bytes of a video file; `start` and `end` (seconds) restrict the usable part.

    `timed` is False where rate and times in the file are made up, since it was encoded from
    pictures without any.
    """

    where: str
    data: bytes
    label: int = -1
    start: float | None = None
    end: float | None = None
    timed: bool = True

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""
        if callable(choose) and not self.timed:
            choose = functools.partial(_without_rate, choose)
        return read_frames(
            self.data, choose, limits, start=self.start, end=self.end, name=self.where
        )

    def frames(self, limits: Limits) -> Iterator[np.ndarray]:
        """See `StoredVideo`."""
        return iterate_frames(self.data, limits, start=self.start, end=self.end, name=self.where)

    def times(self, count: int, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""
        if not self.timed:
            return np.full(count, np.nan)
        return frame_times(
            self.data, count, limits, start=self.start, end=self.end, name=self.where
        )

    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()


def _without_rate(choose: Chooser, num_frames: int, _fps: float) -> Sequence[int]:
    return choose(num_frames, math.nan)


@dataclass(frozen=True)
class PictureFolder:
    """A folder of numbered pictures, of which only the chosen ones are opened."""

    clip: Clip
    label: int = -1
    templates: tuple[tuple[str, str], ...] = DEFAULT_TEMPLATES

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""
        return read_folder(self.clip, choose, templates=self.templates, limits=limits)

    def frames(self, limits: Limits) -> Iterator[np.ndarray]:
        """See `StoredVideo`."""
        for i in range(self.clip.total_frames):
            yield self.read([i], limits)[0]

    def times(self, count: int, limits: Limits) -> np.ndarray:
        """Pictures in a folder have none."""
        return np.full(count, np.nan)

    def sha256(self) -> str:
        """Of its pictures' files, one after another."""
        digest = hashlib.sha256()
        for i in range(self.clip.total_frames):
            digest.update(picture_bytes(self.clip, i, self.templates)[1])
        return digest.hexdigest()


@dataclass(frozen=True)
class EncodedPictures:
    """The frames of a video as encoded pictures in memory; only the chosen ones are decoded.

    `fps` is 0 where nobody knows it.
    """

    where: str
    pictures: tuple[bytes | memoryview, ...]
    label: int = -1
    fps: float = 0.0

    def read(self, choose: Choose, limits: Limits) -> np.ndarray:
        """See `StoredVideo`."""

        def decode(i: int) -> np.ndarray:
            name = f"number {i}"
            return decode_picture(self.pictures[i], where=self.where, name=name, limits=limits)

        chosen = chosen_frames(choose, len(self.pictures), self.fps or math.nan, self.where)
        return stack_pictures(decode, chosen, self.where)

    def frames(self, limits: Limits) -> Iterator[np.ndarray]:
        """See `StoredVideo`."""
        for i in range(len(self.pictures)):
            yield self.read([i], limits)[0]

    def times(self, count: int, limits: Limits) -> np.ndarray:
        """By the frame rate."""
        return np.arange(count) / (self.fps or math.nan)

    def sha256(self) -> str:
        """Of the pictures, one after another."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture)
        return digest.hexdigest()
