#!/bin/sh
# Begin the run in a folder, or go on from its newest checkpoint: the same command for a first start and a restart.
#
#   torchrun … --no-python recipes/cluster/train.sh RUN [options of gossamer train]
#
# Every process runs this. A run that was stopped before its first checkpoint is moved aside and begun again.
set -eu
run=$1
shift
for checkpoint in "$run"/checkpoints/step-*; do
  if [ -e "$checkpoint" ]; then
    exec gossamer train "$@" --out "$run" --resume
  fi
done
if [ "${RANK:-0}" = 0 ] && [ -e "$run" ]; then
  mv "$run" "$run.stopped-$(date +%Y%m%d-%H%M%S)"
fi
while [ -e "$run" ]; do # until process 0 has moved it
  sleep 1
done
exec gossamer train "$@" --out "$run"
