"""How a process finds out whether it is one of several; what it says if it cannot join them."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from vmae_jax import distributed
from vmae_jax.distributed import DistributedError, Processes, announced_processes

ROOT = pathlib.Path(__file__).parents[1]
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}
STEP |= {"SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, None),
        (STEP, 4),
        # The script of a batch job runs outside of any step: its variables speak of tasks to come.
        ({name: value for name, value in STEP.items() if "STEP" not in name}, None),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, 8),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "3"}, 6),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471", "TPU_WORKER_HOSTNAMES": "a"}, 2),
    ],
)
def test_processes_are_counted_from_a_launchers_variables(environ, count):
    assert announced_processes(environ) == count


@pytest.fixture
def calls(monkeypatch):
    """What would have been asked of JAX, in an environment without a launcher."""
    seen = []

    def initialize(*args, **options):
        seen.append((args, options))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    return seen


def test_a_process_alone_asks_for_no_others(calls, monkeypatch):
    with distributed.joined(Processes()):
        assert jax.process_count() == 1
    with distributed.joined(Processes("localhost:1", 1, 0)):
        pass
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    with distributed.joined(Processes()):
        pass
    assert calls == []


def test_explicit_processes_come_before_the_launchers_and_see_all_devices(calls, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with distributed.joined(Processes("host:123", 2, 1), heartbeat_s=7):
        pass
    ((args, options),) = calls
    assert args == ("host:123", 2, 1)
    assert options["cluster_detection_method"] == "deactivate"
    assert options["heartbeat_timeout_seconds"] == 7


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x2)", [0, 1, 2, 3]), ("1", [0, 1, 2, 3]), ("4(x2)", None)]
)
def test_one_slurm_task_a_node_takes_all_its_gpus(calls, monkeypatch, tasks, devices):
    extra = {"SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": tasks}
    for name, value in (STEP | extra).items():
        monkeypatch.setenv(name, value)
    with distributed.joined(Processes()):
        pass
    ((args, options),) = calls
    assert args == () and options["local_device_ids"] == devices


def test_announced_processes_that_jax_cannot_place_are_an_error(monkeypatch, calls):
    def initialize(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with (
        pytest.raises(DistributedError, match=r"announces 2 processes.*--coordinator=HOST:PORT"),
        distributed.joined(Processes()),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("host:1", 2, -1), "give all three"),
        (("", 2, 0), "give all three"),
        (("host:1", 2, 2), "ids run from 0"),
        (("host", 2, 0), "host:port"),
    ],
)
def test_half_given_processes_are_refused(given, sentence):
    with pytest.raises(DistributedError, match=sentence):
        Processes(*given)


def test_port_in_use_is_a_sentence(calls):
    with socket.create_server(("", 0)) as held:
        port = held.getsockname()[1]
        with (
            pytest.raises(DistributedError, match=f"cannot meet at localhost:{port}.*in use"),
            distributed.joined(Processes(f"localhost:{port}", 2, 0)),
        ):
            pass
    assert calls == []


def test_agreement_of_a_process_with_itself():
    assert distributed.all_agree(True) and not distributed.all_agree(False)
    assert distributed.from_first((3, 5)) == [3, 5]


def test_another_platform_than_asked_for_is_a_sentence_before_the_config_is_read(tmp_path):
    config = tmp_path / "touches.py"
    config.write_text("raise SystemExit('the config was read first')\n")
    command = [sys.executable, "-m", "vmae_jax.main", "--config", config, f"--workdir={tmp_path}"]
    result = subprocess.run(
        [*command, "--platform=gpu"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 1
    assert "--platform=gpu, but JAX found only 3 device(s) of platform cpu" in result.stderr
    assert "make install ACCEL=cuda" in result.stderr and "Traceback" not in result.stderr
