"""Bytes by path: a local file, or an object in a bucket (`gs://`, `s3://`, what fsspec knows).

The clients of the buckets are extras: `pip install vmae_jax[gcs]` or `[s3]`. Their errors, which
are of many kinds, come out as OSError with words.
"""

from __future__ import annotations

import posixpath
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
    filesystem, place = _filesystem(path)
    try:
        return filesystem.cat_file(place, end=None if most < 0 else most)
    except OSError:
        raise
    except Exception as error:  # clients raise kinds of their own
        raise OSError(0, f"{type(error).__name__}: {error}") from error


def is_file(path: str) -> bool:
    """Whether there is a file or an object of this name."""
    if not is_remote(path):
        return Path(path).is_file()
    filesystem, place = _filesystem(path)
    try:
        return filesystem.isfile(place)
    except OSError:
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
