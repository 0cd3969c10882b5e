"""launch/local.sh, for real, with a small program in the place of Python."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.sh"

# Called as Python would be; --config names what it does.
PROGRAM = r"""#!/usr/bin/env bash
for word; do
    case $word in
        --process_id=*) id=${word#*=} ;;
        --config=*) act=${word#*=} ;;
        --workdir=*) workdir=${word#*=} ;;
    esac
done
trap 'echo "asked to stop"; [[ $act == *stubborn* ]] || exit 143' TERM
wait_long() { echo ready; touch "$workdir/ready"; for _ in {1..200}; do sleep 0.1; done; }
case $act.$id in
    show.*) echo "devices $JAX_NUM_CPU_DEVICES"; printf '<%s>\n' "$@" ;;
    dies.1 | dies_stubborn.1) until [[ -e $workdir/ready ]]; do sleep 0.05; done; exit 7 ;;
    mistake.*) echo "ran" >>"$workdir/runs"; exit 1 ;;
    dies_once.1) echo "ran" >>"$workdir/runs"; (($(wc -l <"$workdir/runs") > 1)) || exit 137 ;;
    dies_once.0) until grep -qz 'ran.*ran' "$workdir/runs"; do sleep 0.05; done ;;
    *) wait_long ;;
esac
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return str(path)


def _arguments(tmp_path, act):
    return "--", f"--config={act}", f"--workdir={tmp_path}"


def test_dry_run_prints_each_process_and_starts_none(launch):
    result = launch(
        "local.sh",
        "--dry_run",
        "--devices=4",
        "--port=9000",
        "--",
        "--config=a.py",
        "--workdir=my run",
        "--config.masking.encoder=('tube',0.75)",
        PYTHON="no_such_python",
    )
    assert (result.returncode, result.stderr) == (0, "")
    common = (
        "env JAX_NUM_CPU_DEVICES=4 no_such_python -m vmae_jax.main --platform=cpu "
        "--coordinator=localhost:9000 --num_processes=2 --process_id={} --config=a.py "
        "'--workdir=my run' '--config.masking.encoder=('\\''tube'\\'',0.75)' &\n"
    )
    assert result.stdout == common.format(0) + common.format(1) + "wait\n"
    assert "--workdir=my run" in shlex.split(result.stdout)


def test_gpus_are_dealt_out_in_the_order_given(launch):
    result = launch(
        "local.sh",
        *("--dry_run", "--gpus", "--", "--config=a", "--workdir=b"),
        CUDA_VISIBLE_DEVICES="5,2",
    )
    assert re.findall(r"VISIBLE_DEVICES=(\d).*process_id=(\d)", result.stdout) == [
        ("5", "0"),
        ("2", "1"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--procesess=2"], "--procesess=2 is not an option; they are: --processes= --devices="),
        (["--processes"], "--processes needs a value: --processes=..."),
        (["--gpu"], "--gpu is not an option"),
        (["--gpus=2"], "--gpus=2 is not an option"),
        (["--processes=two"], "--processes=two is not a whole number"),
        (["--processes=0", "--", "--config=a", "--workdir=b"], "at least 1"),
        (["--config=a"], "--config=a is not an option"),
        (["run"], "'run' is out of place"),
        (["--", "--config=a"], "--workdir is missing from the arguments of vmae_jax.main"),
        (["--", "--config=a", "--workdir=gs://b/c"], "the workdir is a folder; mount the bucket"),
        (["--", "--config=a", "--workdir", "gs://b"], "gs://b: the workdir is a folder"),
        (["--gpus", "--", "--config=a", "--workdir=b"], "need as many GPUs"),
        (["--", "--config=a", "--workdir=b"], "no_such_python is not installed"),
    ],
)
def test_mistakes_are_named(launch, arguments, words):
    result = launch("local.sh", *arguments, PYTHON="no_such_python", CUDA_VISIBLE_DEVICES="0")
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_lines_carry_the_number_of_their_process_and_words_stay_whole(launch, program, tmp_path):
    result = launch(
        "local.sh",
        *("--devices=3", *_arguments(tmp_path, "show"), "two words", "it's"),
        PYTHON=program,
    )
    assert result.returncode == 0
    for process in range(2):
        lines = [x[4:] for x in result.stdout.splitlines() if x.startswith(f"[{process}] ")]
        assert lines[0] == "devices 3"
        assert lines[1:4] == ["<-m>", "<vmae_jax.main>", "<--platform=cpu>"]
        assert f"<--process_id={process}>" in lines
        assert lines[-2:] == ["<two words>", "<it's>"]


def test_one_that_fails_takes_the_others_along(launch, program, tmp_path):
    result = launch("local.sh", *_arguments(tmp_path, "dies"), PYTHON=program)
    assert result.returncode == 7
    assert "process 1 ended with exit code 7" in result.stderr
    assert "[0] asked to stop" in result.stdout


def test_one_that_does_not_listen_is_killed(launch, program, tmp_path):
    result = launch("local.sh", "--grace=0", *_arguments(tmp_path, "dies_stubborn"), PYTHON=program)
    assert result.returncode == 7
    assert "process 0 ended with exit code 137" in result.stderr


def test_a_restart_follows_a_failure_and_no_mistake(launch, program, tmp_path):
    result = launch("local.sh", "--restarts=3", *_arguments(tmp_path, "dies_once"), PYTHON=program)
    assert result.returncode == 0
    assert (tmp_path / "runs").read_text() == "ran\nran\n"
    (tmp_path / "runs").unlink()

    arguments = "--restarts=3", "--processes=1", *_arguments(tmp_path, "mistake")
    assert launch("local.sh", *arguments, PYTHON=program).returncode == 1
    assert (tmp_path / "runs").read_text() == "ran\n"


@pytest.fixture
def started(program, tmp_path):
    """Starts local.sh and returns it once both processes run: `started(act)`."""
    scripts = []

    def start(act):
        script = subprocess.Popen(
            ["bash", LOCAL, *_arguments(tmp_path, act)],
            env={"PYTHON": program, "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Where tests run in the background it is ignored, and a shell keeps to that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        scripts.append(script)
        _read_until(script, "ready", 2)
        return script

    yield start
    for script in scripts:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
        script.stdout.close()


def _read_until(script, words, times):
    """Reads lines until `words` has come so many times."""
    while times:
        line = script.stdout.readline()
        assert line, f"ended before {words!r}"
        times -= words in line


def test_sigterm_is_passed_on_once(started):
    script = started("waits")
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=60)
    assert (script.returncode, output.count("asked to stop")) == (143, 2)


def test_the_terminals_interrupt_reaches_the_processes_once(started):
    # A terminal sends Ctrl-C to its whole foreground group. A process that got it from there and
    # from the script would have met two signals, and the second one kills.
    script = started("waits")
    os.killpg(script.pid, signal.SIGINT)
    output, _ = script.communicate(timeout=60)
    assert (script.returncode, output.count("asked to stop")) == (143, 2)


def test_a_second_signal_kills(started):
    script = started("stubborn")
    script.send_signal(signal.SIGTERM)
    _read_until(script, "asked to stop", 2)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 137
    assert "killing all processes" in output


@pytest.mark.slow
def test_a_real_training_of_two_processes(launch, tmp_path):
    root = LOCAL.parents[1]
    videos = tmp_path / "videos"
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, "-m", "vmae_jax.data.synthetic", f"--out={videos}", "--videos=8"],
        env=environment | {"PATH": os.environ["PATH"]},
        check=True,
        timeout=300,
    )
    result = launch(
        "local.sh",
        *("--devices=2", "--", f"--config={root}/configs/demo.py:smoke"),
        *(f"--workdir={tmp_path}/run", f"--config.data.manifest={videos}/train.csv"),
        *("--config.train.batch_videos=2", "--config.train.steps=2", "--config.data.workers=0"),
        "--config.data.size=(16,16)",
        timeout=600,
        XLA_FLAGS="--xla_backend_optimization_level=0",
        **environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for process in range(2):
        assert re.search(rf"^\[{process}\] .*Done: step 2", result.stdout, re.MULTILINE)
    assert "4 cpu device(s)" in result.stdout
    assert (tmp_path / "run" / "metrics.jsonl").exists()
