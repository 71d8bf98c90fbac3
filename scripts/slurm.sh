#!/usr/bin/env bash
# Run a recipe on several machines under Slurm, one torchrun per machine.
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh scripts/finetune.sh --model_id MODEL ...
# Start it in the checkout. Data, model and output folder must be on a shared file system.
# Five minutes before its time is over the job gets SIGUSR1: training saves a checkpoint and ends,
# the job is queued again and goes on. A job that was preempted or lost a machine goes on likewise.
#SBATCH --job-name=phi3v
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --output=phi3v-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail

recipe="${1:?name a recipe, such as scripts/finetune.sh}"
shift
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

export LAUNCHER=torchrun
export NUM_NODES="$SLURM_NNODES"
export RDZV_ID="$SLURM_JOB_ID"
# Jobs that share a machine must not share a port.
export RDZV_ENDPOINT="$first:$((29500 + SLURM_JOB_ID % 1000))"

# Slurm may signal only the first process of a machine, so it passes the signal on to torchrun's
# children; torchrun itself would die of it.
on_each_machine='
  (trap "" USR1; exec bash "$@") &
  launcher=$!
  trap "kill -USR1 \$(cat /proc/$launcher/task/*/children)" USR1
  until wait "$launcher"; status=$?; ! kill -0 "$launcher" 2>/dev/null; do :; done
  exit "$status"'
srun --kill-on-bad-exit=1 bash -c "$on_each_machine" phi3v \
  "$recipe" --resume_from_checkpoint auto "$@" &
step=$!
was_warned=false
trap 'was_warned=true; kill -USR1 "$step"' USR1
# A trap ends `wait`, not the step.
until wait "$step"; status=$?; ! kill -0 "$step" 2>/dev/null; do :; done
if $was_warned && ((status != 0)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
