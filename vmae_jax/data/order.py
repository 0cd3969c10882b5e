"""Which video comes when, as a pure function of the seed.

A *position* counts the videos of the whole run from 0. It decides everything random about its
video: the epoch, the place in it, the record, and the generator for its frames and crops. So a
batch depends on the seed and the step only, never on workers, processes or what was read before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

# Separate streams of random numbers from one seed: the highest word of the Philox counter.
_CLIP, _SHUFFLE, _SUBSTITUTE = 0, 1, 2


@dataclass(frozen=True)
class Order:
    """The order of one run. Incomplete batches at the end of an epoch are dropped.

    Attributes:
      num_videos: rows of the manifest.
      batch_videos: videos per global batch, over all processes.
      seed: 0 to 2**64 - 1.
      shuffle: reshuffle all videos in each epoch; otherwise manifest order.
    """

    num_videos: int
    batch_videos: int
    seed: int
    shuffle: bool = True

    def __post_init__(self):
        if self.batch_videos < 1:
            raise ValueError(f"batch_videos must be positive, got {self.batch_videos}.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"The seed must lie in 0..2**64-1, got {self.seed}.")
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{self.num_videos} videos do not fill one batch of {self.batch_videos} videos; "
                "add videos or lower the batch."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the list."""
        return self.num_videos // self.batch_videos

    @property
    def epoch_videos(self) -> int:
        """Videos used per epoch."""
        return self.steps_per_epoch * self.batch_videos

    def locate(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, offset in the epoch, record) of a position."""
        epoch, offset = divmod(position, self.epoch_videos)
        if not self.shuffle:
            return epoch, offset, offset
        return epoch, offset, int(_permutation(self.num_videos, self.seed, epoch)[offset])

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
        """Record to try at a position after `attempt` failures (1, 2, ...)."""
        rng = _generator(self.seed, position, attempt, _SUBSTITUTE)
        return int(rng.integers(self.num_videos))


def _generator(seed: int, item: int, attempt: int, stream: int) -> np.random.Generator:
    # A counter-based generator: any (seed, item) has its own stream, at no cost to find it.
    key, counter = np.array([seed, item], np.uint64), np.array([0, 0, attempt, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@functools.lru_cache(maxsize=2)  # batches in flight may straddle two epochs
def _permutation(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    return _generator(seed, epoch, 0, _SHUFFLE).permutation(num_videos).astype(np.int32)
