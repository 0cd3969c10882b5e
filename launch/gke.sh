#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster, as a JobSet (gke_jobset.yaml).
#
#   launch/gke.sh --name=NAME --image=IMAGE --claim=CLAIM --accelerator=tpu-v5-lite-podslice \
#       --topology=4x4 [options] -- --config=FILE --workdir=/mnt/vmae/RUN [more arguments of vmae_jax.main]
#
#   --image=IMAGE         built from launch/Dockerfile with ACCEL=tpu, and pushed
#   --claim=CLAIM         volume claim (ReadWriteMany) that every host sees as /mnt/vmae
#   --accelerator=NAME    node label, e.g. tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
#   --topology=4x4        chips of the slice
#   --chips_per_host=4    of the machine type of the node pool
#   --restarts=10         failures after which the run is given up; preemptions do not count
#   --dry_run             print the commands instead
#
# See it:  kubectl get jobset NAME
#          kubectl logs --follow --selector=job-name=NAME-slice-0,batch.kubernetes.io/job-completion-index=0
# Stop it: kubectl delete jobset NAME   (the run saves first)
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' image='' claim='' accelerator='' topology='' chips_per_host=4 restarts=10
parse "name= image= claim= accelerator= topology= chips_per_host= restarts=" "$@"
require name image claim accelerator topology
require_numbers chips_per_host restarts
require_main_args
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name=$name: Kubernetes wants small letters, digits and dashes, at most 40"
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || die "--topology=$topology is not of the form 4x4 or 2x2x4"
chips=$((${topology//x/*}))
((chips_per_host > 0 && chips % chips_per_host == 0)) ||
    die "--topology=$topology has $chips chips, which hosts of $chips_per_host (--chips_per_host) cannot make up"
require_program kubectl "it comes with the Google Cloud CLI"

# The arguments as a YAML list of single-quoted words, in which Kubernetes sees no $(variables).
arguments=()
single="'" double="''"
for word in --platform=tpu "${MAIN_ARGS[@]}"; do
    [[ $word != *$'\n'* ]] || die "an argument holds a line break: $word"
    word=${word//"\$("/"\$\$("}
    arguments+=("- '${word//$single/$double}'")
done
indent=$'\n                    '
printf -v list "%s$indent" "${arguments[@]}"

jobset=$(<"$LAUNCH/gke_jobset.yaml")
fill() { jobset=${jobset//"\$$1"/"$2"}; }
fill NAME "$name"
fill IMAGE "$image"
fill CLAIM "$claim"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill CHIPS "$chips_per_host"
fill HOSTS "$((chips / chips_per_host))"
fill RESTARTS "$restarts"
fill ARGUMENTS "${list%"$indent"}"

run_with_input "$jobset" kubectl apply --filename=-
