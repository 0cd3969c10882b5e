"""Which video comes when, as a pure function of the seed.

A *position* counts the videos of the whole run from 0. It decides everything random about its
video: the epoch, the place in it, the record, and the generator for its frames and crops. So a
batch depends on the seed and the step only, never on workers, processes or what was read before.
A *record* is a number of a source's video; see `sources`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Separate streams of random numbers from one seed: the highest word of the Philox counter.
_CLIP, _SHUFFLE, _SUBSTITUTE, _SHARE = 0, 1, 2, 3


@dataclass(frozen=True)
class Share:
    """A part of a mixture: of its `videos`, each epoch takes `draws`.

    With `draws == videos` each video comes once an epoch, with twice as many twice. Where `draws`
    is no multiple of `videos`, the rest of one epoch goes on where the rest of the epoch before it
    ended, in ever new shuffles of the part: over the epochs all of its videos come equally often.
    """

    videos: int
    draws: int


@dataclass(frozen=True)
class Order:
    """The order of one run. Incomplete batches at the end of an epoch are dropped.

    Attributes:
      num_videos: records to choose from.
      batch_videos: videos per global batch, over all processes.
      seed: 0 to 2**64 - 1.
      shuffle: reshuffle all videos in each epoch; otherwise the order of the source.
      shares: of a mixture, whose records lie part after part; (): each record comes once an epoch.
    """

    num_videos: int
    batch_videos: int
    seed: int
    shuffle: bool = True
    shares: tuple[Share, ...] = ()

    def __post_init__(self):
        if self.shares and sum(share.videos for share in self.shares) != self.num_videos:
            raise ValueError(f"The shares do not add up to {self.num_videos} videos: {self.shares}")
        if self.batch_videos < 1:
            raise ValueError(f"batch_videos must be positive, got {self.batch_videos}.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"The seed must lie in 0..2**64-1, got {self.seed}.")
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{self.num_draws} videos do not fill one batch of {self.batch_videos} videos; "
                "add videos or lower the batch."
            )

    @property
    def num_draws(self) -> int:
        """Videos of an epoch, the incomplete batch at its end included."""
        return sum(share.draws for share in self.shares) if self.shares else self.num_videos

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the list."""
        return self.num_draws // self.batch_videos

    @property
    def epoch_videos(self) -> int:
        """Videos used per epoch."""
        return self.steps_per_epoch * self.batch_videos

    def locate(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, offset in the epoch, record) of a position."""
        epoch, offset = divmod(position, self.epoch_videos)
        slot = offset
        if self.shuffle:
            slot = int(_shuffles(self.num_draws, self.seed, _SHUFFLE, 0)(epoch)[offset])
        return epoch, offset, self._record(epoch, slot)

    def local_positions(self, step: int, process_index: int, process_count: int) -> range:
        """Positions of one process in one step: a contiguous block of the global batch."""
        if self.batch_videos % process_count:
            raise ValueError(
                f"A batch of {self.batch_videos} videos does not divide among {process_count} "
                "processes; make batch_videos a multiple of the number of processes."
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}.")
        block = self.batch_videos // process_count
        begin = step * self.batch_videos + process_index * block
        return range(begin, begin + block)

    def rng(self, position: int, attempt: int = 0) -> np.random.Generator:
        """Generator for the video at a position; `attempt` counts replacements of bad videos."""
        return _generator(self.seed, position, attempt, _CLIP)

    def substitute(self, position: int, attempt: int) -> int:
        """Record to try at a position after `attempt` failures (1, 2, ...); -1: none."""
        rng = _generator(self.seed, position, attempt, _SUBSTITUTE)
        _, _, record = self.locate(position)
        videos = [share.videos for share in self._shares]
        part, _ = _place_in_parts(record, videos)  # the same, so that its share stays what it is
        return sum(videos[:part]) + int(rng.integers(videos[part]))

    @property
    def _shares(self) -> tuple[Share, ...]:
        return self.shares or (Share(self.num_videos, self.num_videos),)

    def _record(self, epoch: int, slot: int) -> int:
        """The record that a slot of an epoch stands for; slots lie part after part like records."""
        part, slot = _place_in_parts(slot, [share.draws for share in self._shares])
        share = self._shares[part]
        first = sum(share.videos for share in self._shares[:part])
        rest = share.draws % share.videos
        if slot < share.draws - rest:  # whole passes, which need no shuffle of their own
            return first + slot % share.videos
        passed, place = divmod(epoch * rest + slot - (share.draws - rest), share.videos)
        if self.shuffle:
            place = int(_shuffles(share.videos, self.seed, _SHARE, part)(passed)[place])
        return first + place


@dataclass(frozen=True)
class Pass(Order):
    """The order of one pass, as a test needs it: every video once, in the order of the source.

    The last batch is filled up with places that hold no video; `locate` gives -1 as their record.
    """

    shuffle: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold all videos."""
        return -(-self.num_videos // self.batch_videos)

    def locate(self, position: int) -> tuple[int, int, int]:
        """Returns (0, position, record); see `Order.locate`."""
        return 0, position, position if position < self.num_videos else -1

    def substitute(self, position: int, attempt: int) -> int:
        """None: a video that cannot be used leaves its place empty."""
        return -1


def _place_in_parts(place: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Returns (part, place in the part) of a place in parts that lie one after another."""
    for part, size in enumerate(sizes):
        if place < size:
            return part, place
        place -= size
    raise IndexError(f"Place {place} beyond the end of parts of sizes {sizes}.")


def _generator(seed: int, item: int, attempt: int, stream: int) -> np.random.Generator:
    # A counter-based generator: any (seed, item) has its own stream, at no cost to find it.
    key, counter = np.array([seed, item], np.uint64), np.array([0, 0, attempt, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@functools.lru_cache(maxsize=16)
def _shuffles(num_videos: int, seed: int, stream: int, part: int) -> Callable[[int], np.ndarray]:
    """Returns the shuffles of a list by their number, int32 [num_videos] each."""

    @functools.lru_cache(maxsize=2)  # batches in flight may straddle two epochs
    def shuffle(number: int) -> np.ndarray:
        rng = _generator(seed, number, part, stream)
        return rng.permutation(num_videos).astype(np.int32)

    return shuffle
