#!/usr/bin/env bash
# Runs a training as a systemd service of this machine: it outlives the login, starts again when it
# fails, and is told to save when the machine goes down. The other scripts call it on TPU hosts.
#
#   launch/service.sh install --accel=tpu
#   launch/service.sh start [--cache=DIR] -- --config=FILE --workdir=DIR [more arguments of vmae_jax.main]
#   launch/service.sh status | log | stop
#
#   --accel=tpu     wheels to install: cpu, cuda, cuda12 or tpu
#   --cache=DIR     where compiled programs are kept; on a disk that all hosts share
#   --dry_run       print the commands instead
#
# install brings its own Python, so that all hosts have the same. A service that fails starts again
# after 30 s, at most 10 times an hour; stop waits until the run has saved. Log: vmae_jax.log here.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

unit=vmae_jax
log="$REPOSITORY/vmae_jax.log"
action="${1-}"
(($# == 0)) || shift
accel=tpu cache=''

# What systemd calls running, exited (done), failed, auto-restart, or dead (never started).
state() { systemctl show --property=SubState --value "$unit" 2>/dev/null || echo dead; }

install() {
    command -v make >/dev/null || run sudo apt-get --option=DPkg::Lock::Timeout=600 install --yes make
    run bash -o pipefail -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
    run "$HOME/.local/bin/uv" python install 3.13
    run make -C "$REPOSITORY" install "ACCEL=$accel" "PYTHON=$HOME/.local/bin/python3.13"
}

start() {
    case $(state) in
        dead) ;;
        exited) run sudo systemctl stop "$unit" ;;
        failed) run sudo systemctl reset-failed "$unit" ;;
        *) die "a training is running on $HOSTNAME; launch/service.sh stop ends it" ;;
    esac
    local options=(
        "--unit=$unit" "--uid=$(id -un)" "--working-directory=$REPOSITORY"
        --property=KillMode=mixed --property=TimeoutStopSec=600
        --property=Restart=on-failure --property=RestartSec=30
        --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10
        --property=RemainAfterExit=yes
        # At shutdown the run saves before its disks and the network go.
        --property=After=network-online.target --property=After=remote-fs.target
        # A TPU's driver pins memory; services may pin next to none by default.
        --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576
        "--property=StandardOutput=append:$log" "--property=StandardError=append:$log"
    )
    [[ -z $cache ]] || options+=("--setenv=JAX_COMPILATION_CACHE_DIR=$cache")
    # systemd takes $ for a variable of its own.
    run sudo systemd-run "${options[@]}" "$REPOSITORY/.venv/bin/python" -m vmae_jax.main "${MAIN_ARGS[@]//\$/\$\$}"
}

case $action in
    install)
        parse "accel=" "$@"
        install
        ;;
    start)
        parse "cache=" "$@"
        require_main_args
        require_program systemd-run "a service needs a Linux with systemd"
        start
        ;;
    status)
        parse "" "$@"
        run systemctl show --property=SubState,ExecMainStatus,NRestarts "$unit"
        run tail -n 3 "$log"
        ;;
    log)
        parse "" "$@"
        run tail -n 100 -F "$log"
        ;;
    stop)
        parse "" "$@"
        run sudo systemctl stop "$unit"
        ;;
    --help | -h) usage ;;
    *) die "'$action' is not an action; they are: install start status log stop (see --help)" ;;
esac
