#!/usr/bin/env bash
# Measures training on one GPU, ours and PyTorch's: steps of ViT-B and ViT-g with dual masking, each
# attention in each stack, and parity with the released code. Needs `make install ACCEL=cuda` and the
# extra `bench`; takes about half an hour.
#
#   benchmarks/gpu.sh [--smoke] [--golden=DIR] [OUT.jsonl]
#
# --smoke: miniatures of two clips, a minute or two on any machine, to try the script.
# --golden: recorded cases for the parity tests (default: the small ones of the repository).
# PYTHON names the interpreter (default: .venv/bin/python). Figures are appended to OUT.jsonl (default:
# gpu.jsonl), one line a program, and shown as a table. A program that fails (out of memory, say) is named
# at the end, the others go on; the exit code is then 1.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
mode="" golden="" out=gpu.jsonl
for argument in "$@"; do
    case $argument in
        --smoke) mode=:smoke ;;
        --golden=*) golden=$argument ;;
        -*) echo "gpu.sh: unknown argument $argument; see the head of the script" >&2; exit 2 ;;
        *) out=$argument ;;
    esac
done

if [[ -n $mode ]]; then
    b_clips=2 g_clips=2 length=(--steps=1 --warmup=1)
    torch=(--smoke)
else
    b_clips=64 g_clips=16 length=(--steps=100 --warmup=20)
    torch=(--compile)
    # Without this JAX falls back to the CPU where it finds no GPU, and times that.
    export JAX_PLATFORMS=cuda
fi
failed=()

run() {
    echo "== $*"
    "$@" || failed+=("$*")
}
ours() { run "$python" -m vmae_jax.tools.bench step "${length[@]}" --resize=host --json="$out" "$@"; }
theirs() { run "$python" benchmarks/torch_step.py "${length[@]}" "${torch[@]}" --json="$out" "$@"; }

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
b=(--config="configs/v2_vitb.py$mode" --clips="$b_clips")
g=(--config="configs/v2_vitg.py$mode" --clips="$g_clips")

ours "${b[@]}"
ours "${g[@]}"
theirs --system=videomae_v2 --variant=B --clips="$b_clips" --dtype=bfloat16
theirs --system=videomae_v2 --variant=g --clips="$g_clips" --dtype=bfloat16 --checkpoint
# The first line above took `auto`: cuDNN in both stacks on a GPU.
for attention in xla/xla xla/auto auto/xla; do
    ours "${b[@]}" --attention="$attention"
    ours "${g[@]}" --attention="$attention"
done
if [[ -z $mode ]]; then
    run "$python" -m pytest tests/parity ${golden:+"$golden"}
fi

"$python" - "$out" <<'PY'
import json, sys

def cell(row, *names):
    value = next((row[n] for n in names if row.get(n) is not None), "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)

print("| program | attention | clips | step, s | clips/s | TFLOP/s | GiB | compile, s |")
print("|---|---|---|---|---|---|---|---|")
for row in map(json.loads, open(sys.argv[1])):
    attention = "/".join(row.get(f"{s} attention", "sdpa") for s in ("encoder", "decoder"))
    print(f"| {row['bench']} {row['config']} | {attention} | {row['clips']} | {cell(row, 'step_s')} "
          f"| {cell(row, 'clips_per_s_per_chip')} | {cell(row, 'tflops_per_chip')} "
          f"| {cell(row, 'memory_gib')} | {cell(row, 'compile_s')} |")
PY

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
