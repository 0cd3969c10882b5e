"""A short form of the soak of `benchmarks/soak.py`, whose long one is in benchmarks/RESULTS.md."""

import json
import pathlib
import subprocess
import sys

import pytest

SOAK = pathlib.Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_as_the_unbroken_one(tmp_path):
    command = [sys.executable, SOAK, "--kills=6", "--processes=2", f"--folder={tmp_path / 'soak'}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["kills"] == 6 and sum(figures["by_phase"].values()) == 6
    assert figures["largest_difference"] == 0.0
