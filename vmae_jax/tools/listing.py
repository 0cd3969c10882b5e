"""Videos given by name on the command line, as a list like any other."""

import contextlib
import csv
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def listed(videos: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Writes a list of files for as long as it is needed.

    Args:
      videos: paths.

    Yields:
      (manifest, root); listed paths are relative to the folder that all files have in common.
    """
    # Links are not followed: a video is called what the user calls it.
    paths = [pathlib.Path(os.path.normpath(pathlib.Path(video).absolute())) for video in videos]
    root = os.path.commonpath([path.parent for path in paths])
    with tempfile.TemporaryDirectory(prefix="vmae_list_") as folder:
        listing = pathlib.Path(folder) / "videos.csv"
        with listing.open("w", newline="", encoding="utf-8") as file:
            rows = [["path"], *([str(path.relative_to(root))] for path in paths)]
            csv.writer(file).writerows(rows)
        yield str(listing), root
