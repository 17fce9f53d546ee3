#!/usr/bin/env bash
# Asks for a TPU slice with a queued resource, which waits until there is one.
#
#   scripts/tpu/create.sh --name=NAME --zone=ZONE --type=v5litepod-8 [--spot]
#
#   --name     of the slice, and of its queued resource
#   --zone     such as us-west4-a
#   --type     v5litepod-8, v5litepod-64, v6e-8, v5p-8, v4-8, ...
#   --spot     cheaper, and may be taken away at any time; training goes on from its checkpoint
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flag_type='' flag_spot=false
parse type spot -- "$@"
case $flag_type in
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  v4-*) image=tpu-ubuntu2204-base ;;
  '') fail "--type is missing, such as --type=v5litepod-8" ;;
  *) fail "--type=$flag_type: must begin with v4-, v5litepod-, v5p- or v6e-" ;;
esac
options=(--node-id="$flag_name" --accelerator-type="$flag_type" --runtime-version="$image")
if [[ $flag_spot == true ]]; then
  options+=(--spot)
fi
run gcloud compute tpus queued-resources create "$flag_name" "${place[@]}" "${options[@]}"
# WAITING_FOR_RESOURCES, then PROVISIONING, then ACTIVE.
run gcloud compute tpus queued-resources describe "$flag_name" "${place[@]}" \
  --format='value(state.state)'
