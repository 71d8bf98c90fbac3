#!/usr/bin/env bash
# Fold an adapter into its base model.
#   bash scripts/merge_lora.sh --model-path output/adapter --save-model-path output/merged
# The base is read from the adapter folder; --model-base names another place of it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

exec "$PYTHON" -m phi3v merge \
  --safe-serialization \
  "$@"
