#!/usr/bin/env bash
# Starts a script on all workers of a slice, and leaves it running there.
#
#   scripts/tpu/run.sh --name=NAME --zone=ZONE -- train.py --workdir=gs://BUCKET/RUN [FLAGS]
#
#   --name     of a slice that setup.sh has prepared
#   --zone     such as us-west4-a
#   --cache    folder of compiled programs, such as gs://BUCKET/cache; a restart finds them there
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flag_cache=''
parse cache -- "$@"
((${#rest[@]})) || fail "what shall run? end with: -- train.py --workdir=gs://BUCKET/RUN"
command=(env)
if [[ $flag_cache ]]; then
  command+=("JAX_COMPILATION_CACHE_DIR=$flag_cache")
fi
command+=(.venv/bin/python "${rest[@]}" --distributed=auto)
on_workers all "cd $remote_folder
if kill -0 \$(cat ~/$remote_pid 2>/dev/null) 2>/dev/null; then
  echo 'error: a run goes on here; stop.sh ends it' >&2
  exit 1
fi
nohup ${command[*]@Q} >~/$remote_log 2>&1 </dev/null &
echo \$! >~/$remote_pid"
