#!/usr/bin/env bash
# Start-up script of the hosts of a queued resource; run by each of them, as root, at every boot.
#
# Fetches the code, installs it and starts the training; after a preemption the same command goes on
# from the last checkpoint. queued_resource.sh leaves what this needs in the machine's metadata. To
# read along on a host: sudo journalctl --follow --unit=google-startup-scripts
set -euo pipefail
export HOME="${HOME:-/var/lib/vmae_jax}"

attribute() {
    curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

code=$(attribute vmae-code)
prepare=$(attribute vmae-prepare)
arguments=$(attribute vmae-arguments)
folder=$(attribute vmae-folder)

mkdir -p "$HOME" "$folder"
cd "$folder"
gcloud storage cp "$code" code.tar.gz
tar -xzf code.tar.gz
bash -euc "$prepare"
launch/service.sh install --accel=tpu
eval "set -- $arguments" # quoted for a shell by the sender
launch/service.sh start "$@"
