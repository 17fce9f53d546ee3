#!/usr/bin/env bash
# Shows what a run writes, and goes on showing it until Ctrl-C.
#
#   scripts/tpu/logs.sh --name=NAME --zone=ZONE [--worker=N]
#
#   --name     of the slice
#   --zone     such as us-west4-a
#   --worker   0 prints the losses; the others only their errors
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flag_worker=0
parse worker -- "$@"
# With `all`, ssh would hold everything back until the end, which never comes.
[[ $flag_worker =~ ^[0-9]+$ ]] || fail "--worker=$flag_worker: must be a number"
on_workers "$flag_worker" "tail -n 100 -F ~/$remote_log"
