#!/usr/bin/env bash
# Run a recipe on several machines under Slurm, one torchrun per machine.
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh scripts/finetune.sh --model_id MODEL ...
# Start it in the checkout. Data, model and output folder must be on a shared file system.
#SBATCH --job-name=phi3v
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --output=phi3v-%j.log
set -euo pipefail

recipe="${1:?name a recipe, such as scripts/finetune.sh}"
shift
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

export LAUNCHER=torchrun
export NUM_NODES="$SLURM_NNODES"
export RDZV_ID="$SLURM_JOB_ID"
# Jobs that share a machine must not share a port.
export RDZV_ENDPOINT="$first:$((29500 + SLURM_JOB_ID % 1000))"

srun --kill-on-bad-exit=1 bash "$recipe" "$@"
