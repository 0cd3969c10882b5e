"""How the launch scripts are run by their tests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script of launch/ in an empty folder with nothing of the user's environment but PATH.

    `launch(script, *arguments, **environment)`; programs put into `tmp_path / "bin"` come first.
    """

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            cwd=tmp_path,
            env={"PATH": path, "TMPDIR": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
