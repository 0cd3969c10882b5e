#!/usr/bin/env bash
# Runs one training as several processes on this machine, as several hosts would.
#
#   launch/local.sh [options] -- --config=FILE --workdir=DIR [more arguments of vmae_jax.main]
#
#   --processes=2   how many
#   --devices=1     fake CPU devices of each process
#   --gpus          instead: one GPU for each process, in the order of CUDA_VISIBLE_DEVICES
#   --port=8476     on which process 0 coordinates
#   --restarts=0    how often to start again after a failure; the workdir says where to go on
#   --grace=30      seconds from asking the others to stop, when one has failed, to killing them
#   --dry_run       print the commands instead
#
# Ctrl-C and SIGTERM are passed on once: the run saves and ends with 143. A second one kills.
# The exit code is that of the first process that failed, or 0. A code of 1 (a mistake in the
# arguments, in words) and 143 are never followed by a restart.
# PYTHON names the interpreter; default: .venv/bin/python of this repository.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

processes=2 devices=1 gpus='' port=8476 restarts=0 grace=30
parse "processes= devices= gpus port= restarts= grace=" "$@"
require_numbers processes devices port restarts grace
((processes > 0 && devices > 0)) || die "--processes and --devices are at least 1"
require_main_args
python="${PYTHON:-$REPOSITORY/.venv/bin/python}"

if [[ $gpus ]]; then
    visible="${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
    IFS=, read -ra gpu_of <<<"$visible"
    ((${#gpu_of[@]} >= processes)) ||
        die "$processes processes need as many GPUs; CUDA_VISIBLE_DEVICES=$visible names ${#gpu_of[@]}"
fi
require_program "$python" "run make install, or set PYTHON to an interpreter that has vmae_jax"

running=() # index of a process -> its id
stopping=0
code=0

# Starts process $1, or prints how.
start() {
    local command
    if [[ $gpus ]]; then
        command=(env "CUDA_VISIBLE_DEVICES=${gpu_of[$1]}" "$python" -m vmae_jax.main --platform=gpu)
    else
        command=(env "JAX_NUM_CPU_DEVICES=$devices" "$python" -m vmae_jax.main --platform=cpu)
    fi
    command+=("--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$1" "${MAIN_ARGS[@]}")
    if ((DRY_RUN)); then
        printf '%s &\n' "$(quote "${command[@]}")"
        return
    fi
    "${command[@]}" </dev/null > >(label "$1") 2>&1 &
    running[$1]=$!
}

# Puts the number of a process before each of its lines.
label() {
    trap '' INT TERM
    local line
    while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

signal_all() {
    local index
    for index in "${!running[@]}"; do kill "-$1" "${running[index]}" 2>/dev/null || true; done
}

# shellcheck disable=SC2329 # called by trap
on_signal() {
    if ((stopping)); then
        say "killing all processes"
        signal_all KILL
    else
        stopping=1
        say "passing SIGTERM on; once more to kill"
        signal_all TERM
    fi
}

# Waits until no process runs; one that fails takes the others along. Sets `code`.
await() {
    local index status deadline=0
    code=0
    while ((${#running[@]})); do
        for index in "${!running[@]}"; do
            ! kill -0 "${running[index]}" 2>/dev/null || continue
            status=0
            wait "${running[index]}" 2>/dev/null || status=$?
            unset "running[index]"
            ((status)) || continue
            say "process $index ended with exit code $status"
            ((code)) || code=$status
            if ((deadline == 0 && ${#running[@]} && !(stopping && status == 143))); then
                say "ending the others; those that have not ended in $grace s are killed"
                signal_all TERM
                deadline=$((SECONDS + grace + 1))
            fi
        done
        ((deadline == 0 || SECONDS < deadline)) || signal_all KILL
        sleep 0.2 &
        wait $! || true
    done
}

if ((DRY_RUN)); then
    for ((i = 0; i < processes; i++)); do start "$i"; done
    echo wait
    exit 0
fi
set -m # each process in a group of its own: the terminal's Ctrl-C reaches this script alone
trap on_signal INT TERM
while :; do
    for ((i = 0; i < processes; i++)); do start "$i"; done
    await
    ((code != 0 && code != 1 && !stopping && restarts > 0)) || break
    restarts=$((restarts - 1))
    say "starting again; $restarts more restart(s) if needed"
done
exit "$code"
