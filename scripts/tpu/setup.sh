#!/usr/bin/env bash
# Copies the last commit to every worker of a slice and installs it there; again after a change.
#
#   scripts/tpu/setup.sh --name=NAME --zone=ZONE
#
#   --name     of a slice that is ACTIVE
#   --zone     such as us-west4-a
#   --project  another than that of `gcloud config`
#   --dry_run  prints the commands and runs none

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse -- "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
archive="build/$remote_folder.tar.gz"

# A first connection makes the keys and adds them to every worker, one after the other.
on_workers all true
run mkdir -p build
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$flag_name:" "${place[@]}" --worker=all
# The images come with Python 3.10.
on_workers all "set -e
sudo add-apt-repository -y ppa:deadsnakes/ppa
sudo apt-get -o DPkg::Lock::Timeout=600 install -y python3.11-venv
mkdir -p $remote_folder
tar -xzf $remote_folder.tar.gz -C $remote_folder
cd $remote_folder
python3.11 -m venv .venv
.venv/bin/pip install -q -r requirements.txt -r requirements-tpu.txt"
