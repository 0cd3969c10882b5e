"""Features of the windows of videos: what is computed, and the files that they are kept in.

Features of one video are gathered on disk beyond a bound, so its length does not count.
"""

import collections
import dataclasses
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.data import storage
from vmae_jax.data.windows import End, Window
from vmae_jax.errors import UserError
from vmae_jax.systems.base import Batch, Encoder, Params

POOLINGS = ("mean", "slot", "tokens", "head")
DTYPES = ("float32", "float16")
_HELD_BYTES = 64 << 20  # of the features of one video, in memory


class FeatureError(UserError):
    """Features that cannot be computed or kept; says what to do."""


def make_features(
    encoder: Encoder, *, pooling: str, layer: int | None = None, dtype: str = "float32"
) -> Callable[[Params, Batch], jax.Array]:
    """Returns a pure function `(params, batch) -> features [B, ...]`.

    Args:
      encoder: of the system.
      pooling: "mean" of the tokens, [B, D]; "slot", mean of each time slot, [B, t, D]; "tokens",
        all of them, [B, t*h*w, D], t slowest; "head", what the model's own head sees, [B, D].
      layer: block whose tokens these are, from 1; None: the last.
      dtype: of the features.

    Raises:
      FeatureError: there is no such layer, or the head does not see it.
    """
    if pooling not in POOLINGS:
        raise FeatureError(f"pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")
    chosen = encoder.depth if layer is None else layer
    if not 1 <= chosen <= encoder.depth:
        raise FeatureError(f"layer {layer}: the encoder has the blocks 1 to {encoder.depth}")
    if pooling == "head" and chosen != encoder.depth:
        raise FeatureError(
            f'pooling "head" is of the last layer, {encoder.depth}, not of {layer}; choose another '
            "pooling or leave the layer out"
        )

    def features(params: Params, batch: Batch) -> jax.Array:
        if pooling == "head":
            return encoder.pooled(params, batch).astype(dtype)
        tokens = encoder.tokens(params, batch, chosen)
        if pooling == "mean":
            tokens = jnp.mean(tokens, axis=1)
        elif pooling == "slot":
            slots = tokens.reshape(len(tokens), encoder.grid(chosen)[0], -1, tokens.shape[-1])
            tokens = jnp.mean(slots, axis=2)
        return tokens.astype(dtype)

    return features


class Recorded:
    """The features of one video as they come, window by window.

    Attributes:
      dtype: of the features.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_HELD_BYTES)  # noqa: SIM115
        self._index: list[np.ndarray] = []
        self._padded: list[bool] = []
        self._row_shape: tuple[int, ...] = ()
        self._row_bytes = 0
        self.dtype = np.dtype(np.float32)

    def add(self, window: Window, features: np.ndarray) -> None:
        """Takes those of the next window."""
        self._row_shape, self._row_bytes = features.shape, features.nbytes
        self.dtype = features.dtype
        self._index.append(window.index)
        self._padded.append(window.padded)
        self._file.write(np.ascontiguousarray(features).tobytes())

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all features together."""
        return (len(self), *self._row_shape)

    def facts(self, end: End) -> dict[str, np.ndarray]:
        """What is kept beside the features."""
        index = np.stack(self._index)
        return {
            "frames": index,
            "start_s": end.times[index[:, 0]],
            "end_s": end.times[index[:, -1]],
            "padded": np.array(self._padded),
            "label": np.array(end.label, np.int32),
        }

    def blocks(self) -> Iterator[bytes]:
        """The features in order, whole windows at a time."""
        self._file.seek(0)
        rows = max(1, _HELD_BYTES // self._row_bytes)
        while block := self._file.read(rows * self._row_bytes):
            yield block

    def close(self) -> None:
        """Frees memory and disk."""
        self._file.close()


class FeatureFiles(Protocol):
    """Where the features of videos are kept, by name; a name is there only once it is complete."""

    def finished(self, names: Sequence[str]) -> set[str]:
        """Those that are there already."""

    def save(self, name: str, recorded: Recorded, end: End) -> None:
        """Keeps those of a video."""


class NpzFiles:
    """A `.npz` for each video, in a folder or bucket."""

    def __init__(self, folder: str):
        self._folder = folder

    def _path(self, name: str) -> str:
        return storage.join(self._folder, f"{name}.npz")

    def finished(self, names: Sequence[str]) -> set[str]:
        """See `FeatureFiles`."""
        return {name for name in names if storage.size(self._path(name)) is not None}

    def save(self, name: str, recorded: Recorded, end: End) -> None:
        """See `FeatureFiles`."""
        with storage.writing(self._path(name)) as path, zipfile.ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(recorded.dtype),
                    "fortran_order": False,
                    "shape": recorded.shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
                for block in recorded.blocks():
                    file.write(block)
            for key, array in recorded.facts(end).items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


class Hdf5File:
    """One HDF5 file with a group for each video; groups without the attribute `complete` are what a
    killed run left, and made again.

    It is closed between two videos, so that a kill finds it whole but while one is written.
    """

    def __init__(self, path: str):
        """
        Raises:
          FeatureError: h5py is not there, or the path is in a bucket.
        """
        try:
            import h5py  # an extra
        except ImportError:
            raise FeatureError(
                "--format=hdf5 needs h5py: pip install 'vmae_jax[features]', or take npz"
            ) from None
        if storage.is_remote(path):
            raise FeatureError(f"{path}: HDF5 is written to local disks only; take npz")
        self._open, self._path = h5py.File, pathlib.Path(path)

    def finished(self, names: Sequence[str]) -> set[str]:
        """See `FeatureFiles`."""
        if not self._path.exists():
            return set()
        try:
            with self._open(self._path, "r") as file:
                begun = [name for name in names if name in file]
                return {name for name in begun if file[name].attrs.get("complete")}
        except OSError as error:
            raise FeatureError(
                f"{self._path} cannot be read ({error}); a kill while it was written does that. "
                "Delete it and begin again, or take npz"
            ) from error

    def save(self, name: str, recorded: Recorded, end: End) -> None:
        """See `FeatureFiles`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._open(self._path, "a") as file:
            if name in file:
                del file[name]
            group = file.create_group(name)
            features = group.create_dataset("features", recorded.shape, recorded.dtype)
            begin = 0
            for block in recorded.blocks():
                rows = np.frombuffer(block, recorded.dtype).reshape(-1, *recorded.shape[1:])
                features[begin : begin + len(rows)] = rows
                begin += len(rows)
            for key, array in recorded.facts(end).items():
                group[key] = array
            file.flush()
            group.attrs["complete"] = True


@dataclasses.dataclass
class Extracted:
    """What came of a run: windows of each video, and why others failed."""

    windows: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)


def extract(
    forward: Callable[[np.ndarray], jax.Array],
    events: Iterable[tuple[int, Window | End]],
    files: FeatureFiles,
    *,
    names: Mapping[int, str],
    batch: int,
    on_batch: Callable[[Extracted, int], None] = lambda done, windows: None,
) -> Extracted:
    """Computes the features of windows in batches, whatever videos they are of, and keeps them.

    Args:
      forward: uint8 [batch, T, H, W, C] -> features [batch, ...]; may return before they are there.
      events: (number of a video, one of its windows or its end); see `WindowFeed`.
      files: where to.
      names: of the videos, by number.
      batch: windows at a time; the last batch is filled up with black ones, which are dropped.
      on_batch: is called after each batch with what came of the run so far, and the number of
        windows computed.
    """
    done, num_windows = Extracted(), 0
    open_videos: dict[int, Recorded] = collections.defaultdict(Recorded)

    def retire(group: list[tuple[int, Window | End]], computed: jax.Array | None) -> None:
        nonlocal num_windows
        rows = iter(() if computed is None else np.asarray(computed))
        for number, event in group:
            if isinstance(event, Window):
                open_videos[number].add(event, next(rows))
                num_windows += 1
                continue
            recorded, name = open_videos.pop(number, None), names[number]
            if event.error is None:
                files.save(name, recorded, event)
                done.windows[name] = len(recorded)
            else:
                done.failures[name] = event.error.reason
            if recorded is not None:
                recorded.close()
        on_batch(done, num_windows)

    waiting: collections.deque[tuple[list[tuple[int, Window | End]], jax.Array | None]]
    waiting = collections.deque()
    for group in _groups(events, batch):
        waiting.append((group, _computed(forward, group, batch)))
        if len(waiting) == 2:
            retire(*waiting.popleft())
    while waiting:
        retire(*waiting.popleft())
    return done


def _groups(
    events: Iterable[tuple[int, Window | End]], batch: int
) -> Iterator[list[tuple[int, Window | End]]]:
    """Events in their order, up to `batch` windows at a time."""
    group, count = [], 0
    for event in events:
        group.append(event)
        count += isinstance(event[1], Window)
        if count == batch:
            yield group
            group, count = [], 0
    if group:
        yield group


def _computed(
    forward: Callable[[np.ndarray], jax.Array], group: list[tuple[int, Window | End]], batch: int
) -> jax.Array | None:
    clips = [event.frames for _, event in group if isinstance(event, Window)]
    if not clips:
        return None
    video = np.zeros((batch, len(clips[0]), *clips[0][0].shape), np.uint8)
    for row, frames in zip(video, clips, strict=False):
        np.stack(frames, out=row)
    return forward(video)
