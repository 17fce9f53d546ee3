#!/usr/bin/env bash
# Gives a slice back, its disks with it, and ends its costs. What lies in gs:// stays.
#
#   scripts/tpu/delete.sh --name=NAME --zone=ZONE
#
#   --name     of the slice
#   --zone     such as us-west4-a
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse -- "$@"
run gcloud compute tpus queued-resources delete "$flag_name" "${place[@]}" --force --quiet
