#!/usr/bin/env bash
# Trains on a TPU VM, or on all hosts of a pod slice, over ssh.
#
#   launch/tpu.sh create --name=NAME --zone=ZONE --type=v5litepod-16 [--spot] [--runtime=VERSION]
#   launch/tpu.sh setup  --name=NAME --zone=ZONE [--commit=HEAD] [--prepare=COMMAND]
#   launch/tpu.sh start  --name=NAME --zone=ZONE [--cache=DIR] -- --config=FILE --workdir=DIR [...]
#   launch/tpu.sh status | stop | delete --name=NAME --zone=ZONE
#   launch/tpu.sh log    --name=NAME --zone=ZONE [--worker=0]
#
#   --type=TYPE        chips, as Google names them; v5litepod-8 is one host, v5litepod-16 four
#   --runtime=VERSION  software of the VM; default: the one for this type of chip
#   --commit=HEAD      of this repository, to copy to the hosts and install
#   --prepare=COMMAND  run on every host first, e.g. to mount the disk of the data and the workdir
#   --cache=DIR        where compiled programs are kept; on the shared disk
#   --project=PROJECT  default: gcloud's
#   --dry_run          print the commands instead
#
# The training is a service of every host (launch/service.sh): it lives on when you log out. stop
# saves first. The workdir must be on a disk that all hosts share.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action="${1-}"
(($# == 0)) || shift
name='' zone='' project='' type='' runtime='' spot='' commit=HEAD prepare='' cache='' worker=0

gcloud_tpu() {
    local verb=$1
    shift
    run gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" ${project:+"--project=$project"}
}

# on WORKER COMMAND: runs a shell command on one host, or on "all" at once.
on() { gcloud_tpu ssh "$name" "--worker=$1" "--command=$2"; }

service() { echo "cd $HOST_FOLDER && launch/service.sh $(quote "$@")"; }

copy_and_install() {
    archive "$commit"
    gcloud_tpu scp "$ARCHIVE" "$name:vmae_jax.tar.gz" --worker=all
    # What another commit left behind would be mixed with this one.
    on all "set -e
sudo mkdir -p $HOST_FOLDER && sudo chown \$(id -un) $HOST_FOLDER && cd $HOST_FOLDER
rm -rf vmae_jax configs launch && tar -xzf ~/vmae_jax.tar.gz
${prepare:+$prepare
}launch/service.sh install --accel=tpu"
}

case $action in
    create)
        parse "name= zone= project= type= runtime= spot" "$@"
        require name zone type
        runtime="${runtime:-$(tpu_runtime "$type")}"
        ;;
    setup) parse "name= zone= project= commit= prepare=" "$@" ;;
    start)
        parse "name= zone= project= cache=" "$@"
        require_main_args
        ;;
    log) parse "name= zone= project= worker=" "$@" ;;
    status | stop | delete) parse "name= zone= project=" "$@" ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "'$action' is not an action; they are: create setup start status log stop delete (see --help)" ;;
esac
require name zone
require_program gcloud "it comes with the Google Cloud CLI"

case $action in
    create)
        gcloud_tpu create "$name" "--accelerator-type=$type" "--version=$runtime" ${spot:+--spot}
        ;;
    setup) copy_and_install ;;
    start) on all "$(service start ${cache:+"--cache=$cache"} -- --platform=tpu "${MAIN_ARGS[@]}")" ;;
    status) on all "$(service status)" ;;
    log) on "$worker" "$(service log)" ;;
    stop) on all "$(service stop)" ;;
    delete) gcloud_tpu delete "$name" --quiet ;;
esac
