"""The scripts for TPU hosts: what they would execute, and that arguments arrive whole."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHERE = ("--name=run1", "--zone=europe-west4-b")
ARGUMENTS = (
    "--config=a.py",
    "--workdir=/mnt/vmae/my run",
    "--config.masking.encoder=('tube',0.75)",
)
AS_QUOTED = (
    "--config=a.py '--workdir=/mnt/vmae/my run' '--config.masking.encoder=('\\''tube'\\'',0.75)'"
)


@pytest.fixture(scope="module")
def commit():
    command = ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout: there is no commit to copy")
    return result.stdout.strip()


def _commands(result):
    """The printed commands as lists of words."""
    assert result.returncode == 0, result.stderr
    lexer = shlex.shlex(result.stdout, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " ", True, ""
    commands = [[]]
    for word in lexer:
        if set(word) == {"\n"}:
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


@pytest.mark.parametrize(
    ("kind", "software"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_create_knows_the_software_of_each_chip(launch, kind, software):
    result = launch("tpu.sh", "create", "--dry_run", *WHERE, f"--type={kind}")
    assert result.stdout == (
        f"gcloud compute tpus tpu-vm create run1 --accelerator-type={kind} --version={software} "
        "--zone=europe-west4-b\n"
    )


def test_create_passes_on_what_is_chosen(launch):
    options = "--type=v7-8", "--runtime=newest", "--spot", "--project=p"
    result = launch("tpu.sh", "create", "--dry_run", *WHERE, *options)
    assert result.stdout == (
        "gcloud compute tpus tpu-vm create run1 --accelerator-type=v7-8 --version=newest --spot "
        "--zone=europe-west4-b --project=p\n"
    )


def test_setup_copies_a_commit_to_all_hosts_and_installs_it(launch, commit, tmp_path):
    result = launch("tpu.sh", "setup", "--dry_run", *WHERE, "--prepare=mount '/mnt/vmae'")
    tar = f"{tmp_path}/vmae_jax-{commit}.tar.gz"
    archive, copy, install = _commands(result)
    assert archive == [
        *("git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={tar}", commit)
    ]
    assert copy == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", tar, "run1:vmae_jax.tar.gz"),
        *("--worker=all", "--zone=europe-west4-b"),
    ]
    assert install == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "run1", "--worker=all"),
        "--command=set -e\n"
        "sudo mkdir -p /srv/vmae_jax && sudo chown $(id -un) /srv/vmae_jax && cd /srv/vmae_jax\n"
        "rm -rf vmae_jax configs launch && tar -xzf ~/vmae_jax.tar.gz\n"
        "mount '/mnt/vmae'\n"
        "launch/service.sh install --accel=tpu",
        "--zone=europe-west4-b",
    ]


def test_arguments_arrive_whole_on_the_hosts(launch):
    result = launch("tpu.sh", "start", "--dry_run", *WHERE, "--cache=/mnt/c", "--", *ARGUMENTS)
    (command,) = _commands(result)
    assert command[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "run1", "--worker=all"]
    on_the_host = command[7].removeprefix("--command=")
    assert on_the_host == (
        "cd /srv/vmae_jax && launch/service.sh start --cache=/mnt/c -- --platform=tpu " + AS_QUOTED
    )
    assert shlex.split(on_the_host)[-3:] == list(ARGUMENTS)


@pytest.mark.parametrize(
    ("action", "options", "worker"),
    [("status", (), "all"), ("stop", (), "all"), ("log", ("--worker=3",), "3")],
)
def test_actions_that_the_hosts_carry_out(launch, action, options, worker):
    result = launch("tpu.sh", action, "--dry_run", *WHERE, *options)
    assert result.stdout == (
        f"gcloud compute tpus tpu-vm ssh run1 --worker={worker} "
        f"'--command=cd /srv/vmae_jax && launch/service.sh {action}' --zone=europe-west4-b\n"
    )


def test_delete(launch):
    result = launch("tpu.sh", "delete", "--dry_run", *WHERE)
    assert result.stdout == (
        "gcloud compute tpus tpu-vm delete run1 --quiet --zone=europe-west4-b\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "'' is not an action; they are: create setup start status log stop delete"),
        (["crate"], "'crate' is not an action"),
        (["create", *WHERE], "--type=... is missing"),
        (["create", *WHERE, "--type=v1-8"], "--type=v1-8 is not one of v4-N"),
        (["stop", "--name=a"], "--zone=... is missing"),
        (["stop", *WHERE, "--spot"], "--spot is not an option; they are: --name= --zone="),
        (["setup", *WHERE, "--dry_run", "--commit=nowhere"], "--commit=nowhere is not a commit"),
        (["start", *WHERE, "--", "--config=a"], "--workdir is missing"),
        (["stop", *WHERE], "gcloud is not installed or not in PATH"),
    ],
)
def test_mistakes_are_named(launch, tmp_path, arguments, words):
    result = launch("tpu.sh", *arguments, PATH=_without_gcloud(tmp_path))
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""


def _without_gcloud(tmp_path):
    """A folder with the few programs that the scripts need themselves."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("bash", "dirname", "git", "sed", "id", "cat"):
        (folder / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    return str(folder)


# The service of a host.


def test_service_starts_and_quotes_for_systemd(launch, programs):
    calls = programs(systemctl="echo failed", sudo="", systemd_run="")
    result = launch("service.sh", "start", "--cache=/mnt/c", "--", *ARGUMENTS, "--x=$a")
    assert result.returncode == 0, result.stderr
    *_, reset, run = (line.split("\t") for line in calls.read_text().splitlines())
    assert reset == ["sudo", "systemctl", "reset-failed", "vmae_jax"]
    assert run[:3] == ["sudo", "systemd-run", "--unit=vmae_jax"]
    assert {"--property=KillMode=mixed", "--property=Restart=on-failure"} < set(run)
    assert "--setenv=JAX_COMPILATION_CACHE_DIR=/mnt/c" in run
    program = run.index(f"{ROOT}/.venv/bin/python")
    assert run[program + 1 :] == ["-m", "vmae_jax.main", *ARGUMENTS, "--x=$$a"]


def test_service_is_not_started_twice(launch, programs):
    programs(systemctl="echo running", sudo="", systemd_run="")
    result = launch("service.sh", "start", "--", *ARGUMENTS)
    assert result.returncode == 2
    assert "launch/service.sh stop ends it" in result.stderr


def test_service_dry_run_of_the_rest(launch, programs, tmp_path):
    programs(make="")
    install = launch("service.sh", "install", "--dry_run", "--accel=cuda")
    assert install.stdout == (
        "bash -o pipefail -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'\n"
        f"{tmp_path}/.local/bin/uv python install 3.13\n"
        f"make -C {ROOT} install ACCEL=cuda PYTHON={tmp_path}/.local/bin/python3.13\n"
    )
    assert launch("service.sh", "stop", "--dry_run").stdout == "sudo systemctl stop vmae_jax\n"
    log = f"{ROOT}/vmae_jax.log"
    assert launch("service.sh", "log", "--dry_run").stdout == f"tail -n 100 -F {log}\n"
    assert launch("service.sh", "status", "--dry_run").stdout == (
        f"systemctl show --property=SubState,ExecMainStatus,NRestarts vmae_jax\ntail -n 3 {log}\n"
    )


# Queued resources.

QUEUED = (*WHERE, "--type=v5litepod-16", "--bucket=gs://b/code", "--spot", "--prepare=mount it")


def test_queued_resource_dry_run(launch, commit, tmp_path):
    result = launch("queued_resource.sh", "--dry_run", *QUEUED, "--", *ARGUMENTS)
    tar = f"vmae_jax-{commit}.tar.gz"
    place = "run1 --zone=europe-west4-b"
    inner = AS_QUOTED.replace("'", "'\\''")
    assert result.stdout == (
        f"git -C {ROOT} archive --format=tar.gz --output={tmp_path}/{tar} {commit}\n"
        f"gcloud storage cp {tmp_path}/{tar} gs://b/code/{tar}\n"
        "# then, every 300 s:\n"
        f"gcloud compute tpus queued-resources describe {place} '--format=value(state.state)'\n"
        "# where there is none (after deleting it, if it is SUSPENDED or FAILED):\n"
        "gcloud compute tpus queued-resources create run1 --node-id=run1 --zone=europe-west4-b "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
        f"'--metadata=^@@^vmae-code=gs://b/code/{tar}@@vmae-folder=/srv/vmae_jax@@"
        f"vmae-prepare=mount it@@vmae-arguments=-- --platform=tpu {inner}' "
        f"--metadata-from-file=startup-script={ROOT}/launch/startup.sh\n"
        "# where it is ACTIVE:\n"
        f"gcloud compute tpus tpu-vm ssh {place} --worker=0 "
        "'--command=systemctl show --property=SubState --value vmae_jax'\n"
        "# when that says exited, and before asking again:\n"
        f"gcloud compute tpus queued-resources delete {place} --force --quiet\n"
    )


# Answers of Google, one for each look; the second wish for chips is refused.
GOOGLE = r"""
step() {
    local n
    n=$(cat "$HOME/$1" 2>/dev/null || echo 0)
    echo $((n + 1)) >"$HOME/$1"
    echo "$n"
}
states=(ABSENT WAITING_FOR_RESOURCES ACTIVE SUSPENDED ABSENT PROVISIONING error ACTIVE ACTIVE)
training=(running dead $LAST)
case "$*" in
    *describe*)
        state=${states[$(step looks)]}
        case $state in
            ABSENT) echo "ERROR: NOT_FOUND: not there" >&2; exit 1 ;;
            error) echo "ERROR: no network" >&2; exit 1 ;;
            *) echo "$state" ;;
        esac
        ;;
    *create*) (($(step wishes) != ${REFUSED:-1})) ;;
    *ssh*) echo "${training[$(step trainings)]}" ;;
esac
"""


@pytest.mark.parametrize(("last", "code"), [("exited", 0), ("failed", 1)])
def test_queued_resource_is_asked_for_again_until_the_run_is_done(
    launch, programs, commit, last, code
):
    calls = programs(gcloud=GOOGLE)
    result = launch("queued_resource.sh", "--poll=0", *QUEUED, "--", *ARGUMENTS, LAST=last)
    assert result.returncode == code, result.stderr
    verbs = re.findall(r"queued-resources\t(\w+)", calls.read_text())
    changes = [verb for verb in verbs if verb != "describe"]
    # The second wish was refused, and repeated.
    assert changes[:4] == ["create", "delete", "create", "create"]
    assert changes[4:] == (["delete"] if last == "exited" else [])
    assert "no network" in result.stderr


def test_queued_resource_that_is_refused_at_once_ends(launch, programs, commit):
    calls = programs(gcloud=GOOGLE)
    result = launch("queued_resource.sh", "--poll=0", *QUEUED, "--", *ARGUMENTS, REFUSED="0")
    assert result.returncode == 1
    assert calls.read_text().count("\tcreate\t") == 1


def test_the_hosts_start_what_was_asked_for(launch, programs, commit, tmp_path):
    """From the words on the command line to those that the service of a host gets."""
    printed = launch("queued_resource.sh", "--dry_run", *QUEUED, "--", *ARGUMENTS)
    (create,) = (c for c in _commands(printed) if c[3:5] == ["queued-resources", "create"])
    (value,) = (w for w in create if w.startswith("--metadata="))
    values = dict(item.split("=", 1) for item in value.removeprefix("--metadata=^@@^").split("@@"))
    values |= {"vmae-folder": f"{tmp_path}/srv", "vmae-prepare": "touch 'was prepared'"}
    for name, text in values.items():
        (tmp_path / name).write_text(text)
    # A repository of one script that writes down its arguments.
    (tmp_path / "code/launch").mkdir(parents=True)
    service = tmp_path / "code/launch/service.sh"
    service.write_text('#!/usr/bin/env bash\nprintf "<%s>" "$@" >>called; echo >>called\n')
    service.chmod(0o755)
    programs(
        curl=f'for url; do :; done; cat "{tmp_path}/${{url##*/}}"',
        gcloud=f'tar -czf "$4" -C "{tmp_path}/code" .',
    )
    result = launch("startup.sh")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "srv/was prepared").exists()
    installed, started = (tmp_path / "srv/called").read_text().splitlines()
    assert installed == "<install><--accel=tpu>"
    words = ["start", "--", "--platform=tpu", *ARGUMENTS]
    assert started == "".join(f"<{word}>" for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bucket=b"], "--bucket=b does not begin with gs://"),
        (["--poll=x"], "--poll=x is not a whole number"),
        (["--prepare=a@@b"], "@@ cannot be part of an argument here"),
    ],
)
def test_queued_resource_names_mistakes(launch, options, words):
    result = launch("queued_resource.sh", "--dry_run", *QUEUED, *options, "--", *ARGUMENTS)
    assert result.returncode == 2
    assert words in result.stderr
