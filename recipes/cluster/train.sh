#!/bin/sh
# Begin the run in a folder, or go on with it: the same command for a first start and a restart.
#
#   torchrun … --no-python recipes/cluster/train.sh RUN [options of gossamer train]
#
# Every process runs this. None makes the run's config.yaml before all have begun, so all decide alike.
set -eu
run=$1
shift
if [ -e "$run/config.yaml" ]; then
  set -- "$@" --resume
fi
exec gossamer train "$@" --out "$run"
