#!/usr/bin/env bash
# Trains on a queued TPU resource, waiting for chips and asking again when they are taken away.
#
#   launch/queued_resource.sh --name=NAME --zone=ZONE --type=v5litepod-16 --bucket=gs://BUCKET/FOLDER \
#       [options] -- --config=FILE --workdir=DIR [more arguments of vmae_jax.main]
#
#   --bucket=gs://...  where the code is put for the hosts to fetch
#   --spot             cheaper chips that may be taken away at any time
#   --runtime=VERSION  software of the VM; default: the one for this type of chip
#   --commit=HEAD      of this repository, to run
#   --prepare=COMMAND  run on every host first, e.g. to mount the disk of the data and the workdir
#   --cache=DIR        where compiled programs are kept; on the shared disk
#   --poll=300         seconds between two looks
#   --project=PROJECT  default: gcloud's
#   --dry_run          print the commands instead
#
# The hosts start the training themselves (launch/startup.sh). This script watches: a resource that
# is SUSPENDED or FAILED is deleted and asked for again, and the run goes on from its workdir, which
# must be on a disk that outlives the hosts. When the training is done the resource is deleted and
# the exit code is 0; when it failed too often or was stopped, the resource is left for you to look
# at and the exit code is 1. Ctrl-C ends the watching alone; the same command takes it up again.
# launch/tpu.sh status, log and stop work on the same NAME.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' zone='' project='' type='' bucket='' spot='' runtime='' commit=HEAD prepare='' cache='' poll=300
parse "name= zone= project= type= bucket= spot runtime= commit= prepare= cache= poll=" "$@"
require name zone type bucket
require_numbers poll
require_main_args
[[ $bucket == gs://?* ]] || die "--bucket=$bucket does not begin with gs://"
runtime="${runtime:-$(tpu_runtime "$type")}"
require_program gcloud "it comes with the Google Cloud CLI"
place=("--zone=$zone" ${project:+"--project=$project"})

create() {
    local arguments=(${cache:+"--cache=$cache"} -- --platform=tpu "${MAIN_ARGS[@]}")
    # Values hold commas, so gcloud is told another separator.
    local metadata="^@@^vmae-code=$code@@vmae-folder=$HOST_FOLDER@@vmae-prepare=${prepare:-true}"
    metadata+="@@vmae-arguments=$(quote "${arguments[@]}")"
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${place[@]}" \
        "--accelerator-type=$type" "--runtime-version=$runtime" ${spot:+--spot} \
        "--metadata=$metadata" "--metadata-from-file=startup-script=$LAUNCH/startup.sh"
}

delete() { run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet; }

# State of the resource: ABSENT, UNKNOWN (Google does not answer), or as Google calls it.
look_state=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" "--format=value(state.state)")
resource_state() {
    local answer
    if answer=$("${look_state[@]}" 2>&1); then
        echo "${answer##*$'\n'}"
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo ABSENT
    else
        say "$answer"
        echo UNKNOWN
    fi
}

# State of the training on the first host, as systemd calls it; see service.sh.
look_training=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0
    "--command=systemctl show --property=SubState --value vmae_jax")
training_state() {
    local answer
    answer=$("${look_training[@]}" 2>/dev/null) || answer="not reached"
    echo "${answer##*$'\n'}"
}

# Asks for chips for as long as it takes: what Google refuses now may work at the next look.
watch() {
    local state training
    while :; do
        state=$(resource_state)
        say "$name is $state"
        case $state in
            ABSENT) create || say "not created; trying again" ;;
            SUSPENDED | FAILED) { delete && create; } || say "not created anew; trying again" ;;
            ACTIVE)
                training=$(training_state)
                say "its training is ${training/dead/not started yet}"
                case $training in
                    exited)
                        delete
                        return 0
                        ;;
                    failed)
                        say "see launch/tpu.sh log --name=$name --zone=$zone; give the chips back with"
                        say "gcloud compute tpus queued-resources delete $name --zone=$zone --force"
                        return 1
                        ;;
                esac
                ;;
        esac
        sleep "$poll"
    done
}

archive "$commit"
code="${bucket%/}/${ARCHIVE##*/}"
[[ "$code$prepare$cache${MAIN_ARGS[*]}" != *@@* ]] || die "@@ cannot be part of an argument here"
run gcloud storage cp "$ARCHIVE" "$code"
if ((DRY_RUN)); then
    echo "# then, every $poll s:"
    quote "${look_state[@]}"
    echo "# where there is none (after deleting it, if it is SUSPENDED or FAILED):"
    create
    echo "# where it is ACTIVE:"
    quote "${look_training[@]}"
    echo "# when that says exited, and before asking again:"
    delete
    exit 0
fi
# What is refused at once is a mistake in the arguments, and ends this.
[[ $(resource_state) != ABSENT ]] || create
watch
