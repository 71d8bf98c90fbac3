#!/usr/bin/env bash
# LoRA on the language model, the vision tower and the image projection.
#   bash scripts/finetune_lora_vision.sh --model_id MODEL --data_path data.json --image_folder images
# Flags after the script's name win over those below. Launcher and processes: see launch.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

MODEL_ID="${MODEL_ID:-microsoft/Phi-3.5-vision-instruct}"
LORA_RANK=64
LORA_ALPHA=64
LORA_DROPOUT=0.05
LEARNING_RATE=2e-4
NUM_CROPS=16
BATCH_PER_DEVICE=4
ACCUMULATION=4
EPOCHS=2

launch_training \
  --model_id "$MODEL_ID" \
  --output_dir output/finetune_lora_vision \
  --lora_enable True \
  --vision_lora True \
  --lora_namespan_exclude "['lm_head', 'embed_tokens']" \
  --lora_rank "$LORA_RANK" \
  --lora_alpha "$LORA_ALPHA" \
  --lora_dropout "$LORA_DROPOUT" \
  --freeze_vision_tower True \
  --freeze_llm True \
  --tune_img_projector False \
  --num_crops "$NUM_CROPS" \
  --num_train_epochs "$EPOCHS" \
  --per_device_train_batch_size "$BATCH_PER_DEVICE" \
  --gradient_accumulation_steps "$ACCUMULATION" \
  --learning_rate "$LEARNING_RATE" \
  --weight_decay 0 \
  --warmup_steps 0.03 \
  --lr_scheduler_type cosine \
  --bf16 True \
  --activation_memory auto \
  --report_to tensorboard \
  "$@"
