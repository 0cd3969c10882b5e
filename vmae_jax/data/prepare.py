"""Turns a list of videos into a prepared set: smaller, cheap to decode, in ArrayRecord shards.

The work is one function of one argument, `write_shard(job)`: it runs in threads of one machine
(`run_here`) or in the workers of a Beam runner (`run_beam`), and what it writes is the same.
Shard s of n holds a contiguous part of the list, so records come in the order of the list.

Each shard converts its videos in a process of its own: a file that crashes or hangs the decoder
costs that process, and becomes a failure like any other. A shard and then its *note* (JSON: rows,
failures, hash of the shard) appear under their names only when they are complete; whatever has no
note that fits is made again. `dataset.json`, written last, makes the folder a set.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vmae_jax import __version__
from vmae_jax.data import guard as guards
from vmae_jax.data import records, storage
from vmae_jax.data.manifest import CLASSES, Clip
from vmae_jax.data.sources import ListedFiles, fetch_clip
from vmae_jax.data.stored import EncodedVideo, StoredVideo
from vmae_jax.data.video import Limits, VideoError, encode_mp4, probe
from vmae_jax.errors import UserError

REPORT = "report.json"
_CLAIM = "notes/settings.json"
_RATE = 25.0  # frames per second where none is known; nothing that reads by frame depends on it
_MOST_DEATHS = 4  # in a row; fewer may be the fault of the files
_DIED = "the process that converted it died (a crash in the decoder, a hang, or want of memory)"


class PrepareError(UserError):
    """A set that cannot be made; says what to do."""


@dataclass(frozen=True)
class Settings:
    """What becomes of a video.

    Attributes:
      kind: "mp4" (H.264 tuned for fast decoding) or "jpeg" (one JPEG file a frame).
      short_side: pixels; larger videos are scaled down to it, smaller ones keep their size, both
        rounded down to even sides.
      gop: mp4: a key frame every so many frames.
      crf: mp4: constant quality of x264, lower is better.
      quality: jpeg: of Pillow, 1 to 95.
    """

    kind: str = "mp4"
    short_side: int = 256
    gop: int = 16
    crf: int = 20
    quality: int = 85

    def __post_init__(self):
        if self.kind not in records.KINDS:
            raise PrepareError(
                f"format {self.kind!r} is not known; choose one of {', '.join(records.KINDS)}."
            )
        for name, least, most in (
            ("short_side", 2, 8192),
            ("gop", 1, 1000),
            ("crf", 0, 51),
            ("quality", 1, 95),
        ):
            if not least <= getattr(self, name) <= most:
                raise PrepareError(f"{name}={getattr(self, name)} is not in {least}..{most}.")
        if self.short_side % 2:
            raise PrepareError(f"short_side={self.short_side} must be even.")


@dataclass(frozen=True)
class Job:
    """All that one shard needs to be made, wherever that is.

    Attributes:
      out: folder or bucket of the set.
      shard: file name of the shard.
      first_row: of the list; `names` and `clips` are its rows from there on.
      claim: identifies list, settings and versions; see `plan`.
    """

    out: str
    shard: str
    first_row: int
    names: tuple[str, ...]
    clips: tuple[Clip, ...]
    templates: tuple[tuple[str, str], ...]
    settings: Settings
    limits: Limits
    claim: str

    @property
    def note(self) -> str:
        """Path of the note that says the shard is complete."""
        return storage.join(self.out, f"notes/{self.shard}.json")


def plan(
    source: ListedFiles, out: str, *, num_shards: int, settings: Settings, limits: Limits
) -> list[Job]:
    """Divides the work, and writes down in `out` what it is.

    Raises:
      PrepareError: the folder holds another set, or one that was begun otherwise.
    """
    claim = {
        "list_sha256": source.sha256,
        "videos": len(source),
        "shards": num_shards,
        "settings": asdict(settings),
        "versions": _versions(),
    }
    path = storage.join(out, _CLAIM)
    found = _read_json(path)
    if found is None:
        storage.write(path, (json.dumps(claim, indent=2) + "\n").encode())
    elif found != claim:
        differ = [key for key in claim if found.get(key) != claim[key]]
        listed = "; ".join(f"{key} was {found.get(key)!r} and is {claim[key]!r}" for key in differ)
        raise PrepareError(
            f"{out} holds a set that was begun otherwise: {listed}. Ask for the same again to go "
            "on with it, or name another folder."
        )
    bounds = [number * len(source) // num_shards for number in range(num_shards + 1)]
    text = json.dumps(claim, sort_keys=True)
    return [
        Job(
            out=out,
            shard=f"{number:05d}-of-{num_shards:05d}.array_record",
            first_row=begin,
            names=tuple(source.name(i) for i in range(begin, stop)),
            clips=tuple(source.manifest[i] for i in range(begin, stop)),
            templates=source.templates,
            settings=settings,
            limits=limits,
            claim=hashlib.sha256(text.encode()).hexdigest(),
        )
        for number, (begin, stop) in enumerate(itertools.pairwise(bounds))
    ]


def run_here(
    jobs: Sequence[Job], *, workers: int, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Makes all shards on this machine, `workers` at a time.

    Args:
      jobs: of `plan`.
      workers: processes that convert.
      progress: called with the number of rows that were dealt with, from several threads.
    """
    stop = threading.Event()
    pool = futures.ThreadPoolExecutor(workers)
    try:
        made = [pool.submit(write_shard, job, progress=progress, stop=stop) for job in jobs]
        for future in futures.as_completed(made):
            future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def run_beam(jobs: Sequence[Job], arguments: Sequence[str]) -> None:
    """Makes all shards with Apache Beam.

    Args:
      jobs: of `plan`; `out` and the videos must be where all workers reach them.
      arguments: of the Beam pipeline, e.g. --runner=DataflowRunner; none: its embedded runner.

    Raises:
      PrepareError: Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise PrepareError(
            "--runner=beam needs Apache Beam: pip install 'vmae_jax[prepare]'."
        ) from None
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        shards = pipeline | beam.Create(jobs) | beam.Reshuffle()
        shards | beam.Map(write_shard)  # what it did is in its note


def write_shard(
    job: Job,
    *,
    progress: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Makes a shard and its note, unless both are there and whole.

    Args:
      job: which.
      progress: called with numbers of rows that were dealt with.
      stop: ends it between two videos when it is set.

    Raises:
      CancelledError: `stop` was set.
      OSError: what is made cannot be written.
      PrepareError: the machine has no room for the work.
    """
    if _is_done(job):
        progress(len(job.clips))
        return
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    with storage.writing(storage.join(job.out, job.shard)) as file:
        with contextlib.closing(_writer(str(file))) as writer:
            for number, (name, result) in enumerate(zip(job.names, _convert_all(job), strict=True)):
                if stop is not None and stop.is_set():
                    raise futures.CancelledError
                row = {"row": job.first_row + number, "name": name}
                if isinstance(result, bytes):
                    writer.write(result)
                    label = job.clips[number].label
                    rows.append({**row, "label": label, "bytes": len(result)})
                else:
                    failures.append({**row, "reason": result.reason})
                progress(1)
        shard = records.Shard(job.shard, len(rows), file.stat().st_size, _file_sha256(file))
    note = {"claim": job.claim, "shard": asdict(shard), "rows": rows, "failures": failures}
    storage.write(job.note, json.dumps(note).encode())


def _is_done(job: Job) -> bool:
    """Whether a shard is there, whole and made for this job."""
    note = _read_json(job.note)
    if note is None or note.get("claim") != job.claim:
        return False
    path = storage.join(job.out, job.shard)
    if storage.size(path) != note["shard"]["bytes"]:
        return False
    # An object in a bucket is there whole or not at all; a local disk may have lost its power.
    return storage.is_remote(path) or _file_sha256(Path(path)) == note["shard"]["sha256"]


def _convert_all(job: Job) -> Iterator[bytes | VideoError]:
    """Converts the videos of a job, in order, in a process that may die of one of them.

    Raises:
      PrepareError: it died of several in a row, so hardly because of what they are.
    """
    pool, deaths = None, 0
    try:
        for name, clip in zip(job.names, job.clips, strict=True):
            pool = pool or _one_process(job)
            try:
                result = pool.submit(_convert_in_process, name, clip).result()
                deaths = 0
            except VideoError as error:
                result, deaths = error, 0
            except BrokenProcessPool:
                pool.shutdown()
                pool, deaths = None, deaths + 1
                if deaths == _MOST_DEATHS:
                    raise PrepareError(
                        f"{deaths} processes died one after another, the last at {clip.path}. Look "
                        "whether memory or the temporary folder is full, lower --workers, and run "
                        "the same command again."
                    ) from None
                result = VideoError(clip.path, _DIED)
            yield result
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _one_process(job: Job) -> futures.ProcessPoolExecutor:
    # spawn: the caller runs threads, and a forked copy of those can hang.
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=_enter_process, initargs=(job, os.getpid())
    )
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise PrepareError(
            "a process that converts videos cannot start; what it wrote above says why."
        ) from None
    return pool


_job: Job | None = None  # of this process, if it converts
_guard: guards.Guard | None = None


def _enter_process(job: Job, parent: int) -> None:
    global _job, _guard
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it for all
    folder = Path(tempfile.mkdtemp(prefix="vmae_prepare_"))
    _guard = guards.enter(folder, 0, clip_timeout_s=job.limits.timeout_s, parent=parent)
    shutil.rmtree(folder)  # the guard keeps what it needs; nobody else reads it
    _job = job


def _convert_in_process(name: str, clip: Clip) -> bytes:
    with _guard.clip(clip.path):
        return convert(name, clip, _job.templates, _job.settings, _job.limits)


def convert(
    name: str,
    clip: Clip,
    templates: tuple[tuple[str, str], ...],
    settings: Settings,
    limits: Limits,
) -> bytes:
    """Makes the record of one video: all its usable frames, in order, none added or left out.

    Args:
      name: of the video in the list.
      clip: the row of the list; of a stretch of a file only that is kept.
      templates: names of pictures in folders.
      settings: what becomes of it.
      limits: caps; exceeding one is a VideoError.

    Raises:
      VideoError: the video is unusable.
    """
    stored = fetch_clip(clip, templates, limits)
    try:
        return _record(name, clip, stored, settings, limits)
    except VideoError:
        raise
    except Exception as error:  # an odd file must not end the conversion of the others
        raise VideoError(clip.path, f"{type(error).__name__}: {error}") from error


def _record(
    name: str, clip: Clip, stored: StoredVideo, settings: Settings, limits: Limits
) -> bytes:
    fps = None
    if isinstance(stored, EncodedVideo):
        fps = probe(stored.data, limits, name=clip.path).fps or None
    sizes: list[tuple[int, int]] = []

    def frames() -> Iterator[np.ndarray]:
        for frame in stored.frames(limits):
            scaled = scale_down(frame, settings.short_side)
            sizes.append(scaled.shape[:2])
            if sizes[-1] != sizes[0]:
                raise VideoError(clip.path, f"the picture size changes: {sizes[0]}, {sizes[-1]}")
            yield scaled

    if settings.kind == "mp4":
        rate = fps or _RATE
        parts = [encode_mp4(frames(), fps=rate, gop=settings.gop, crf=settings.crf)]
    else:
        parts = [_encode_jpeg(frame, settings.quality) for frame in frames()]
    header = {
        "kind": settings.kind,
        "name": name,
        "label": clip.label,
        "frames": len(sizes),
        "height": sizes[0][0],
        "width": sizes[0][1],
        "fps": fps,
        "source": {
            "path": clip.path,
            "sha256": stored.sha256(),
            "start": clip.start,
            "end": clip.end,
        },
    }
    return records.pack(header, parts)


def scale_down(frame: np.ndarray, short_side: int) -> np.ndarray:
    """Scales a picture to a short side and cuts odd sides off by a pixel; never enlarges.

    Args:
      frame: uint8 [H, W, 3].
      short_side: pixels, even.

    Returns:
      uint8 [H', W', 3], both sides even, 2 at least.
    """
    short = min(frame.shape[:2])
    scaled = [max(2, side * min(short_side, short) // short // 2 * 2) for side in frame.shape[:2]]
    if scaled == list(frame.shape[:2]):
        return frame
    picture = Image.fromarray(frame)
    return np.asarray(picture.resize((scaled[1], scaled[0]), Image.Resampling.BICUBIC))


def _encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return file.getvalue()


def finish(jobs: Sequence[Job], source: ListedFiles) -> dict[str, Any]:
    """Puts the notes of all shards together: index, class names, report, and `dataset.json`.

    Returns:
      The report.

    Raises:
      PrepareError: a shard was not made, or no video could be prepared.
    """
    out, settings = jobs[0].out, jobs[0].settings
    notes = [_read_json(job.note) for job in jobs]
    missing = [job.shard for job, note in zip(jobs, notes, strict=True) if note is None]
    if missing:
        raise PrepareError(f"{out}: {len(missing)} shards were not made, e.g. {missing[0]}.")
    rows = [row for note in notes for row in note["rows"]]
    report = {
        "list_sha256": source.sha256,
        "settings": asdict(settings),
        "versions": _versions(),
        "videos": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "failures": [failure for note in notes for failure in note["failures"]],
    }
    storage.write(storage.join(out, REPORT), _json_text(report))
    if not rows:
        raise PrepareError(f"no video could be prepared; {storage.join(out, REPORT)} says why.")
    index, classes = _index(rows), "".join(f"{name}\n" for name in source.class_names)
    shards = tuple(records.Shard(**note["shard"]) for note in notes if note["rows"])
    digest = hashlib.sha256()
    for text in (index, classes, *(shard.sha256 for shard in shards)):
        digest.update(hashlib.sha256(text.encode()).digest())
    facts = records.DatasetFacts(
        kind=settings.kind,
        videos=len(rows),
        sha256=digest.hexdigest(),
        shards=shards,
        settings=asdict(settings),
        versions=_versions(),
    )
    storage.write(storage.join(out, records.INDEX), index.encode())
    if classes:
        storage.write(storage.join(out, CLASSES), classes.encode())
    storage.write(storage.join(out, records.FACTS), facts.to_json().encode())
    return report


def _index(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label"])
    writer.writerows([row["name"], row["label"]] for row in rows)
    return text.getvalue()


def _versions() -> dict[str, str]:
    """Of all that decides the bytes."""
    libraries = ("av", "numpy", "pillow")
    return {"vmae_jax": __version__} | {n: importlib.metadata.version(n) for n in libraries}


def _writer(path: str):
    from array_record.python import array_record_module  # not on every platform

    # One record a group, to be read alone; the parts are compressed already.
    return array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _read_json(path: str) -> Any:
    """The contents of a file; None if it is not there or not whole, as after a loss of power."""
    try:
        return json.loads(storage.read(path))
    except (FileNotFoundError, ValueError):
        return None
