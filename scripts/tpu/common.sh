# shellcheck shell=bash
# Read by the scripts beside it: their flags, their usage text, and how they run gcloud.

set -euo pipefail

# Where things lie in the home folder of every worker.
# shellcheck disable=SC2034
readonly remote_folder=linear_transformer remote_log=linear_transformer.log \
  remote_pid=linear_transformer.pid

# The comment at the head of the script is its usage text.
usage() {
  sed -n '2,/^$/s/^#\( \|$\)//p' "$0"
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# parse ALLOWED... -- ARGUMENTS...: sets `flag_NAME` of --NAME=VALUE, and of --NAME to true;
# `rest` is what follows a -- among the arguments. --name and --zone must be there.
parse() {
  local allowed=" name zone project dry_run " argument name value
  while [[ $1 != -- ]]; do
    allowed+="$1 "
    shift
  done
  shift
  flag_project='' flag_dry_run=false rest=()
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        rest=("$@")
        break
        ;;
      --*)
        name=${argument#--}
        value=true
        if [[ $name == *=* ]]; then
          value=${name#*=}
          name=${name%%=*}
        fi
        [[ $allowed == *" $name "* ]] || fail "--$name: no such flag; --help shows them"
        printf -v "flag_$name" %s "$value"
        ;;
      *) fail "$argument: flags look like --name=value" ;;
    esac
  done
  [[ ${flag_name:-} ]] || fail "--name is missing; it is the name of the slice"
  [[ ${flag_zone:-} ]] || fail "--zone is missing, such as --zone=us-west4-a"
  place=(--zone="$flag_zone")
  if [[ $flag_project ]]; then
    place+=(--project="$flag_project")
  fi
}

# Runs a command, or prints it as a shell would take it.
run() {
  if [[ $flag_dry_run != true ]]; then
    "$@"
    return
  fi
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# on_workers WHICH COMMAND: over ssh; WHICH is a number or all.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$flag_name" "${place[@]}" --worker="$1" --command="$2"
}
