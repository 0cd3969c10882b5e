"""Which frames of a video make a clip: the released temporal rules, as pure functions.

All return int64 [frames], 0-based, within 0..num_frames-1. `VideoMAE 4.1` and the like name the
released pretraining and fine-tuning loaders (arXiv:2203.12602, arXiv:2303.16727), whose code, where
it differs from the papers, is followed.
"""

from __future__ import annotations

import numpy as np

SAMPLINGS = ("dense", "segments")


def dense_indices(
    num_frames: int, *, frames: int, stride: int, rng: np.random.Generator
) -> np.ndarray:
    """Frames at a fixed stride from a random start: the pretraining rule.

    The start is uniform over all places where `frames * stride` frames fit, else 0. From there the
    index moves on by `stride` only while it stays below the last frame but one, as released; so a
    short video repeats the last frame it reaches, and the very last frame is never reached.

    Source: VideoMAE and VideoMAE V2 released pretraining loaders.
    """
    _check(num_frames, frames, stride)
    places = num_frames - frames * stride + 1
    start = int(rng.integers(places)) if places > 0 else 0
    # The released pointer p is 1-based and moves while p + stride < num_frames.
    steps_left = max(0, (num_frames - start - 2) // stride)
    return start + stride * np.minimum(np.arange(frames), steps_left)


def segment_indices(num_frames: int, *, frames: int, rng: np.random.Generator) -> np.ndarray:
    """One random frame from each of `frames` equal segments: the Something-Something rule.

    The segment length is rounded down, so up to `frames - 1` frames at the end are not used. A
    video with fewer frames than segments is used whole, its first frame repeated in front.

    Source: VideoMAE V2 released loader (V1 repeats frame 0 `frames` times in the short case).
    """
    _check(num_frames, frames, 1)
    length = num_frames // frames
    if length == 0:
        return np.maximum(np.arange(frames) - (frames - num_frames), 0)
    return np.arange(frames) * length + rng.integers(length, size=frames)


def _check(num_frames: int, frames: int, stride: int) -> None:
    if num_frames < 1 or frames < 1 or stride < 1:
        raise ValueError(
            f"num_frames, frames and stride must be positive, got {num_frames}, {frames}, {stride}."
        )
