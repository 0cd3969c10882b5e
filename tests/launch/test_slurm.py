"""launch/slurm.sbatch: the step that it runs, and what it does when the time is over."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "launch" / "slurm.sbatch"
ARGUMENTS = ("--config=a.py", "--workdir=my run")


def test_dry_run(launch):
    result = launch("slurm.sbatch", "--dry_run", "--", *ARGUMENTS)
    assert result.stdout == (
        "srun --ntasks-per-node=1 --cpus-per-task=64 --label --wait=120 "
        f"{ROOT}/.venv/bin/python -m vmae_jax.main --platform=gpu "
        "--config=a.py '--workdir=my run'\n"
        "# if that exits with 143 and this script got no SIGTERM itself:\n"
        "scontrol requeue JOB\n"
    )


def test_it_asks_for_what_the_step_uses():
    text = SLURM.read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    # One process drives all GPUs of a node; every task, not the script, is told before the end.
    assert asked["ntasks-per-node"] == "1"
    assert asked["signal"].startswith("TERM@")
    assert "requeue" in asked and asked["open-mode"] == "append"
    assert f"SLURM_CPUS_PER_TASK:-{asked['cpus-per-task']}" in text


@pytest.fixture
def job(launch, programs, tmp_path):
    """Runs the script as SLURM does, from a copy that lies elsewhere: `job(code of the step)`."""
    copy = shutil.copy(SLURM, tmp_path / "slurm_script")

    def run(code, before=":"):
        calls = programs(srun=f"{before}; exit {code}", scontrol="")
        environment = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "16", "PYTHON": "python3"}
        submitted = {"SLURM_SUBMIT_DIR": str(ROOT)}
        result = launch(copy, "--", *ARGUMENTS, **environment, **submitted)
        return result.returncode, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("code", [0, 1, 137])
def test_the_exit_code_is_that_of_the_step(job, code):
    returned, calls = job(code)
    assert returned == code
    assert calls == [
        "srun\t--ntasks-per-node=1\t--cpus-per-task=16\t--label\t--wait=120\tpython3\t-m\t"
        "vmae_jax.main\t--platform=gpu\t--config=a.py\t--workdir=my run"
    ]


def test_a_run_that_was_told_to_stop_is_put_back_into_the_queue(job):
    returned, calls = job(143)
    assert returned == 143
    assert calls[-1] == "scontrol\trequeue\t7"


def test_a_job_that_was_cancelled_stays_out_of_the_queue(job):
    # scancel signals the script as well as its tasks.
    returned, calls = job(143, before="kill -TERM $PPID")
    assert returned == 143
    assert len(calls) == 1 and calls[0].startswith("srun\t")


def test_mistakes_are_named(launch, tmp_path):
    result = launch("slurm.sbatch", "--", *ARGUMENTS)
    assert (result.returncode, result.stdout) == (2, "")
    assert "this is not a SLURM job; submit it" in result.stderr
    copy = shutil.copy(SLURM, tmp_path / "slurm_script")
    result = launch(copy, "--", *ARGUMENTS, SLURM_SUBMIT_DIR=str(tmp_path))
    assert result.returncode == 2
    assert "submit it from the folder of the repository" in result.stderr
