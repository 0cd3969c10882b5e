"""How the launch scripts are run by their tests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., Path]:
    """Puts programs (bash) before those of the machine; each notes how it was called.

    `programs(gcloud="echo ACTIVE", sudo="")` returns the file of the calls: one a line, the words
    separated by tabs.
    """
    calls = tmp_path / "calls"
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**bodies: str) -> Path:
        for name, body in bodies.items():
            path = folder / name.replace("_", "-")
            note = f'{{ printf %s "${{0##*/}}"; printf "\\t%s" "$@"; echo; }} >>"{calls}"'
            path.write_text(f"#!/usr/bin/env bash\n{note}\n{body}\n")
            path.chmod(0o755)
        return calls

    return put


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script of launch/ in an empty folder with nothing of the user's environment but PATH.

    `launch(script, *arguments, **environment)`; what `programs` made comes first in PATH.
    """

    def run(
        script: str | Path, *arguments: str, timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess:
        variables = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
        }
        return subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            cwd=tmp_path,
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
