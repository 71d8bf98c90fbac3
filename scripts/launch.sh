# Sourced by the recipes: picks the Python, the launcher and the number of processes.
#
# Set in the environment what should differ:
#   LAUNCHER       deepspeed, torchrun, accelerate or python; default: deepspeed where there is a
#                  GPU and DeepSpeed is installed, torchrun with a GPU alone, else python
#   NUM_PROCESSES  processes on this machine; default: one per visible GPU
#   HOSTFILE       list of machines for the deepspeed launcher
#   NUM_NODES, RDZV_ENDPOINT, RDZV_ID
#                  machines, meeting point host:port and name of the run for torchrun
#   ACCELERATE_CONFIG
#                  configuration for accelerate, such as scripts/fsdp2.yaml
#   PYTHON         interpreter

# After a signal, training finishes its step and saves; torchrun would end it after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}"

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
checkout="$(dirname "$scripts")"
# A checkout works without being installed.
export PYTHONPATH="$checkout/src${PYTHONPATH:+:$PYTHONPATH}"

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python
  if [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -x "$checkout/.venv/bin/python" ]]; then
    PYTHON="$checkout/.venv/bin/python"
  fi
fi

count_gpus() {
  "$PYTHON" -c 'import torch; print(torch.cuda.device_count())'
}

has_deepspeed() {
  "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("deepspeed"))'
}

# Run `phi3v train` with the flags given, once per process.
launch_training() {
  local gpus=""
  if [[ -z "${LAUNCHER:-}" || -z "${NUM_PROCESSES:-}" ]]; then gpus="$(count_gpus)"; fi
  local launcher="${LAUNCHER:-}" processes="${NUM_PROCESSES:-$gpus}"
  if [[ -z "$launcher" ]]; then
    launcher=python
    if ((gpus > 0)); then
      launcher=torchrun
      if has_deepspeed; then launcher=deepspeed; fi
    fi
  fi
  if ((processes < 1)); then processes=1; fi

  case "$launcher" in
    deepspeed)
      local machines=(--num_gpus "$processes")
      if [[ -n "${HOSTFILE:-}" ]]; then machines=(--hostfile "$HOSTFILE"); fi
      exec "$PYTHON" -m deepspeed.launcher.runner "${machines[@]}" \
        --module phi3v.training.train "$@"
      ;;
    torchrun)
      local meeting=(--standalone)
      if ((${NUM_NODES:-1} > 1)); then
        meeting=(--nnodes "$NUM_NODES" --rdzv-backend c10d
          --rdzv-endpoint "${RDZV_ENDPOINT:?set it to host:port of the first machine}"
          --rdzv-id "${RDZV_ID:-phi3v}")
      fi
      exec "$PYTHON" -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$processes" \
        -m phi3v.training.train "$@"
      ;;
    accelerate)
      local options=(--num_processes "$processes")
      if [[ -n "${ACCELERATE_CONFIG:-}" ]]; then
        options+=(--config_file "$ACCELERATE_CONFIG")
      fi
      exec "$PYTHON" -m accelerate.commands.launch "${options[@]}" -m phi3v.training.train "$@"
      ;;
    python)
      exec "$PYTHON" -m phi3v.training.train "$@"
      ;;
    *)
      echo "LAUNCHER is '$launcher', expected deepspeed, torchrun, accelerate or python" >&2
      exit 2
      ;;
  esac
}
