"""What holds for every file of launch/, and what tools that know their languages say of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))
STARTED_BY_HAND = [p for p in SCRIPTS if p.name not in ("lib.sh", "startup.sh")]


def _complaints(tool: str, *arguments: str | Path) -> str:
    beside_python = Path(sys.executable).parent
    path = shutil.which(tool, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{tool} is not installed (extra: dev)")
    command = [path, *arguments]
    result = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_shellcheck_has_nothing_to_say():
    assert _complaints("shellcheck", "--external-sources", *SCRIPTS) == ""


def test_hadolint_has_nothing_to_say():
    assert _complaints("hadolint", LAUNCH / "Dockerfile") == ""


def test_the_image_is_given_all_that_its_build_copies():
    ignore = (LAUNCH / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    dockerfile = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE)
              for word in line.split()} - {"."}  # fmt: skip
    assert copied and {path.split("/")[0] for path in copied} <= let_in
    assert all((LAUNCH.parent / path).exists() for path in copied | let_in)
    assert "*" in ignore  # nothing else, least of all data or credentials that lie about


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_can_be_started(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    if script.name == "lib.sh":  # is sourced
        assert not lines[0].startswith("#!")
        return
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("script", STARTED_BY_HAND, ids=lambda path: path.name)
def test_help_is_the_comment_at_the_head_and_names_every_option(launch, script):
    result = launch(script.name, "--help")
    assert result.returncode == 0
    text = script.read_text(encoding="utf-8")
    assert result.stdout.splitlines()[0] == text.splitlines()[1].removeprefix("# ")
    options = set(re.findall(r'\bparse "([^"]*)"', text)[0].split()) | {"dry_run"}
    assert not [name for name in options if f"--{name}" not in result.stdout]
