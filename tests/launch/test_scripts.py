"""What holds for every file of launch/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


def _tool(name: str) -> str:
    beside_python = Path(sys.executable).parent
    path = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_shellcheck_has_nothing_to_say():
    result = subprocess.run(
        [_tool("shellcheck"), "--external-sources", "--enable=quote-safe-variables", *SCRIPTS],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
    )
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_can_be_started(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    if script.name == "lib.sh":  # is sourced
        assert not lines[0].startswith("#!")
        return
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert script.stat().st_mode & 0o111
