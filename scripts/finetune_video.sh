#!/usr/bin/env bash
# Train every part on videos: few crops per frame, many frames.
#   bash scripts/finetune_video.sh --model_id MODEL --data_path data.json --image_folder videos
# Flags after the script's name win over those below. Launcher and processes: see launch.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

MODEL_ID="${MODEL_ID:-microsoft/Phi-3.5-vision-instruct}"
LEARNING_RATE=2e-5
PROJECTOR_LR=2e-5
VISION_LR=2e-6
NUM_CROPS=4
MAX_NUM_FRAMES=32
BATCH_PER_DEVICE=4
ACCUMULATION=4
EPOCHS=1

launch_training \
  --model_id "$MODEL_ID" \
  --output_dir output/finetune_video \
  --freeze_vision_tower False \
  --freeze_llm False \
  --tune_img_projector True \
  --num_crops "$NUM_CROPS" \
  --max_num_frames "$MAX_NUM_FRAMES" \
  --num_train_epochs "$EPOCHS" \
  --per_device_train_batch_size "$BATCH_PER_DEVICE" \
  --gradient_accumulation_steps "$ACCUMULATION" \
  --learning_rate "$LEARNING_RATE" \
  --projector_lr "$PROJECTOR_LR" \
  --vision_lr "$VISION_LR" \
  --weight_decay 0 \
  --warmup_steps 0.03 \
  --lr_scheduler_type cosine \
  --bf16 True \
  --activation_memory auto \
  --report_to none \
  "$@"
