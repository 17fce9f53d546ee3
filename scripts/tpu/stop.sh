#!/usr/bin/env bash
# Ends a run on all workers with SIGTERM: it saves a checkpoint, and run.sh goes on from there.
#
#   scripts/tpu/stop.sh --name=NAME --zone=ZONE
#
#   --name     of the slice, which stays and costs what it costs; delete.sh ends that
#   --zone     such as us-west4-a
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse -- "$@"
on_workers all "pid=\$(cat ~/$remote_pid) && kill -TERM \$pid || exit 1
while kill -0 \$pid 2>/dev/null; do sleep 1; done
tail -n 1 ~/$remote_log"
