"""Bytes by path: a local file, or an object in a bucket (`gs://`, `s3://`, what fsspec knows).

The clients of the buckets are extras: `pip install vmae_jax[gcs]` or `[s3]`. Their errors, which
are of many kinds, come out as OSError with words.
"""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmae_jax.errors import UserError


class StorageError(UserError, OSError):
    """A bucket that cannot be used from here; says what is missing."""


def is_remote(path: str) -> bool:
    """Whether a path names an object in a bucket."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """A name below a folder or bucket; absolute names and URLs stand for themselves."""
    if name.startswith("/") or is_remote(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder else name


def parent(path: str) -> str:
    """The folder or bucket part of a path."""
    return posixpath.dirname(path) if is_remote(path) else str(Path(path).parent)


def read(path: str, most: int = -1) -> bytes:
    """Reads a file or object, whole or its first `most` bytes.

    Raises:
      StorageError: the package that reads this kind of bucket is not installed.
      OSError: it cannot be read; FileNotFoundError if it is not there.
    """
    if not is_remote(path):
        with Path(path).open("rb") as file:
            return file.read(most)
    with _client_errors():
        filesystem, place = _filesystem(path)
        return filesystem.cat_file(place, end=None if most < 0 else most)


def size(path: str) -> int | None:
    """Bytes of a file or object; None if there is none of this name.

    Raises:
      StorageError: the package that reads this kind of bucket is not installed.
      OSError: it cannot be asked for.
    """
    if not is_remote(path):
        local = Path(path)
        return local.stat().st_size if local.is_file() else None
    with _client_errors():
        filesystem, place = _filesystem(path)
        return filesystem.info(place)["size"] if filesystem.isfile(place) else None


def write(path: str, data: bytes) -> None:
    """Writes a small file or object; it appears under its name only once it is complete."""
    if is_remote(path):
        with _client_errors():
            filesystem, place = _filesystem(path)
            filesystem.pipe_file(place, data)
        return
    with writing(path) as file:
        file.write_bytes(data)


@contextlib.contextmanager
def writing(path: str) -> Iterator[Path]:
    """Gives a local file to write; it appears at `path` when the block ends, and not if it raises.

    For a local path it is a hidden file beside it, for a bucket one in the temporary folder.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="vmae_") as folder:
            partial = Path(folder) / posixpath.basename(path)
            yield partial
            with _client_errors():
                filesystem, place = _filesystem(path)
                filesystem.put_file(str(partial), place)
        return
    local = Path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    partial = local.with_name(f".{local.name}.partial")
    try:
        yield partial
        partial.replace(local)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _client_errors() -> Iterator[None]:
    """Turns what clients raise, which is of many kinds, into OSError."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(0, f"{type(error).__name__}: {error}") from error


def _filesystem(path: str):
    import fsspec  # only where a bucket is used

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{path}: {error}. For gs:// install vmae_jax[gcs], for s3:// vmae_jax[s3]."
        ) from error
