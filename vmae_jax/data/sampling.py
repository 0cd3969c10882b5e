"""Which frames of a video make a clip: the released temporal rules, as pure functions.

Indices are int64, 0-based, within 0..num_frames-1: [frames], or [clips, frames] for the views of a
test. Where a rule takes `rng`, None stands for its variant without chance. "Released" are the
pretraining and fine-tuning loaders of VideoMAE and V2 (arXiv:2203.12602, arXiv:2303.16727), whose
code, where it differs from the papers, is followed. "seconds" is the rule of MAE-ST and PySlowFast
(arXiv:2205.09113), and MaskFeat's; "sparse" that of Unmasked Teacher's fine-tuning
(arXiv:2303.16058).
"""

from __future__ import annotations

import numpy as np

SAMPLINGS = ("dense", "window", "segments", "seconds", "sparse")


def dense_indices(
    num_frames: int, *, frames: int, stride: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Frames at a fixed stride from a random start: the pretraining rule.

    The start is uniform over all places where `frames * stride` frames fit, else 0; without chance
    it is the place in the middle. From there the index moves on by `stride` only while it stays
    below the last frame but one, as released; so a short video repeats the last frame it reaches,
    and the very last frame is never reached.

    Source: VideoMAE and VideoMAE V2 released pretraining loaders.
    """
    _check(num_frames, frames, stride)
    places = num_frames - frames * stride + 1
    start = _start(places, rng) if places > 0 else 0
    # The released pointer p is 1-based and moves while p + stride < num_frames.
    steps_left = max(0, (num_frames - start - 2) // stride)
    return start + stride * np.minimum(np.arange(frames), steps_left)


def window_indices(
    num_frames: int, *, frames: int, stride: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Frames spread over a random window of `frames * stride` frames: Kinetics fine-tuning.

    The first and the last frame of the clip are those of the window, so 16 of 64 lie 64/15 apart on
    average, not 4. The window's end, exclusive, is drawn from `window .. num_frames - 1`: the very
    last frame of the video is never reached. Without chance the window lies in the middle.

    A video no longer than the window is spread over the first `num_frames // stride` frames of the
    clip, and its last one repeated for the others.

    Source: released fine-tuning loaders; the middle is V2's validation (V1's is random).
    """
    _check(num_frames, frames, stride)
    window = frames * stride
    if num_frames <= window:
        spread = np.linspace(0, num_frames, num_frames // stride)
        places = np.concatenate([spread, np.full(frames - len(spread), num_frames)])
        return np.minimum(places, num_frames - 1).astype(np.int64)
    start = (num_frames - window) // 2 if rng is None else int(rng.integers(num_frames - window))
    places = np.linspace(start, start + window, frames)
    return np.minimum(places, start + window - 1).astype(np.int64)


def segment_indices(num_frames: int, *, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """One random frame from each of `frames` equal segments: the Something-Something rule.

    Without chance it is the frame in the middle of each. The segment length is rounded down, so up
    to `frames - 1` frames at the end are not used. A video with fewer frames than segments is used
    whole, its first frame repeated in front.

    Source: VideoMAE V2 released loader (V1 repeats frame 0 `frames` times in the short case).
    Unmasked Teacher draws so in pretraining and of Something-Something; its short case is V1's, and
    its middles are of segments whose length is not rounded.
    """
    _check(num_frames, frames, 1)
    length = num_frames // frames
    if length == 0:
        return np.maximum(np.arange(frames) - (frames - num_frames), 0)
    within = length // 2 if rng is None else rng.integers(length, size=frames)
    return np.arange(frames) * length + within


def seconds_indices(
    num_frames: int, *, frames: int, length: float, rng: np.random.Generator | None
) -> np.ndarray:
    """Frames spread over a stretch of a length in seconds: MAE-ST and MaskFeat.

    The stretch begins anywhere, between frames too, where it fits in the video, else with it; its
    last place is `length - 1` frames on, so 16 of 64 lie 63/15 apart. Places are rounded down; past
    the end of a short video its last frame is repeated. Without chance the stretch lies in the
    middle, its begin rounded down.

    Args:
      length: of the stretch in frames of this video, its seconds times the frame rate; real.

    Source: released loaders of MAE-ST and PySlowFast (reference/mae_st.md, 4.1; maskfeat.md, 7).
    """
    _check(num_frames, frames, 1)
    room = max(num_frames - length, 0.0)
    start = room // 2 if rng is None else rng.uniform(0.0, room)
    return _spread(np.array([start]), length, frames, num_frames)[0]


def seconds_views(num_frames: int, *, frames: int, length: float, clips: int) -> np.ndarray:
    """Stretches of a length in seconds, evenly over the whole video: the test of "seconds".

    Stretch k begins at k * floor(room / (clips - 1)); a single one lies in the middle.

    Returns:
      int64 [clips, frames].

    Source: the offset rule of PySlowFast's test (reference/mae_st.md, 5.2; maskfeat.md, 7).
    """
    _check(num_frames, frames, 1)
    room = max(num_frames - length, 0.0)
    starts = np.array([room // 2]) if clips == 1 else np.arange(clips) * (room // (clips - 1))
    return _spread(starts, length, frames, num_frames)


def _spread(starts: np.ndarray, length: float, frames: int, num_frames: int) -> np.ndarray:
    places = np.linspace(starts, starts + length - 1, frames, axis=-1)
    return np.clip(places, 0, num_frames - 1).astype(np.int64)


def sparse_indices(num_frames: int, *, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """One random frame from each of `frames` equal stretches that share their ends.

    Stretch i reaches from frame round(i * s) to round((i + 1) * s), s = (num_frames - 1) / frames:
    both may be drawn, so neighbours may be the same frame and the very last frame is reached. Any
    video is long enough. Without chance it is the only one of `sparse_views`.

    Source: Unmasked Teacher's released fine-tuning loader for Kinetics and Moments in Time
    (reference/umt.md, A6).
    """
    _check(num_frames, frames, 1)
    if rng is None:
        return sparse_views(num_frames, frames=frames, clips=1)[0]
    ends = _stretch_ends(num_frames, frames)
    return rng.integers(ends[:-1], ends[1:], endpoint=True)


def sparse_views(num_frames: int, *, frames: int, clips: int) -> np.ndarray:
    """Clips over the whole video, shifted against each other: the test of "sparse".

    Clip k takes the frames int((k + 1) * s / (clips + 1)) behind the beginnings of the stretches,
    s their length, unrounded.

    Returns:
      int64 [clips, frames].

    Source: as `sparse_indices`.
    """
    _check(num_frames, frames, 1)
    length = (num_frames - 1) / frames
    shifts = (length / (clips + 1) * np.arange(1, clips + 1)).astype(np.int64)
    return shifts[:, None] + _stretch_ends(num_frames, frames)[:-1]


def _stretch_ends(num_frames: int, frames: int) -> np.ndarray:
    """Where `frames` equal stretches begin and end, rounded half to even; int64 [frames + 1]."""
    return np.round((num_frames - 1) / frames * np.arange(frames + 1)).astype(np.int64)


def dense_views(num_frames: int, *, frames: int, stride: int, clips: int) -> np.ndarray:
    """Clips at a fixed stride, evenly placed over the whole video: the test of Kinetics.

    Of every `stride`-th frame of the video (the last one repeated if these are too few), clip k
    takes `frames` in a row from int(k * room / (clips - 1)); a single clip lies in the middle.

    Returns:
      int64 [clips, frames].

    Source: released test loaders, which divide by zero for a single clip.
    """
    _check(num_frames, frames, stride)
    listed = np.arange(0, num_frames, stride)
    room = max(len(listed) - frames, 0)
    starts = view_starts(room, clips)
    places = starts[:, None] + np.arange(frames)
    return listed[np.minimum(places, len(listed) - 1)]


def segment_views(num_frames: int, *, frames: int, clips: int) -> np.ndarray:
    """Clips over the whole video, shifted against each other: the test of Something-Something.

    With segments of tick = num_frames / frames, unrounded, clip k takes the frames
    int(k * tick / clips + x * tick).

    Returns:
      int64 [clips, frames].

    Source: V2's released test loader; for two clips V1's is the same.
    """
    _check(num_frames, frames, 1)
    tick = num_frames / frames
    shifts = np.arange(clips)[:, None] * tick / clips
    return (shifts + np.arange(frames) * tick).astype(np.int64)


def view_starts(room: int, views: int) -> np.ndarray:
    """Where views along a line begin that leaves this room: evenly from 0 to the end.

    A single one lies in the middle, rounded half to even as the released centre crop is.
    """
    if views < 1:
        raise ValueError(f"views must be positive, got {views}.")
    if views == 1:
        return np.array([round(room / 2)])
    return (np.arange(views) * (room / (views - 1))).astype(np.int64)


def _start(places: int, rng: np.random.Generator | None) -> int:
    return (places - 1) // 2 if rng is None else int(rng.integers(places))


def _check(num_frames: int, frames: int, stride: int) -> None:
    if num_frames < 1 or frames < 1 or stride < 1:
        raise ValueError(
            f"num_frames, frames and stride must be positive, got {num_frames}, {frames}, {stride}."
        )
