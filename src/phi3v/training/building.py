"""From the arguments to the model of a run: loaded, wrapped, and frozen where it does not train."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from phi3v.model.loading import (
    choose_attention,
    is_adapter_folder,
    load_model,
    quantization_config,
)
from phi3v.training.adapters import add_adapters
from phi3v.training.arguments import ModelArguments, Phi3VTrainingArguments
from phi3v.training.flags import RunArguments
from phi3v.training.parts import VISION_SIDE, cast_parts, freeze_parts, plan_parts

logger = logging.getLogger(__name__)


def compute_dtype(training: Phi3VTrainingArguments) -> torch.dtype:
    """Return the type that matrix products run in."""
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32


def build_model(arguments: RunArguments) -> Any:
    """Load the base, wrap it where adapters are asked for, and freeze what does not train.

    Returns:
        A ``Phi3VForCausalLM`` or a ``PeftModel``, trainable exactly as the flags say.
    """
    model_args, lora, _, training, _ = arguments
    dtype = compute_dtype(training)
    if is_adapter_folder(model_args.model_id):
        raise ValueError(
            f"--model_id {model_args.model_id} is an adapter folder; merge it first with phi3v "
            "merge, or name its base and pass the folder as --lora_weight_path"
        )
    quantization = None
    if model_args.bits != 16:
        quantization = quantization_config(
            4 if model_args.bits == 4 else 8,
            quant_type=model_args.quant_type,
            double_quant=model_args.double_quant,
            compute_dtype=dtype,
        )
    model = load_model(
        model_args.model_id,
        dtype=dtype,
        attn_implementation=choose_kernel(model_args, dtype),
        quantization=quantization,
    )
    if Path(model_args.model_id).is_dir():
        # An adapter folder must find its base from anywhere.
        model.config._name_or_path = model.name_or_path = str(Path(model_args.model_id).resolve())
    plan = plan_parts(model_args, lora)
    base = model
    if lora.lora_enable:
        # All ranks must draw the same adapters.
        set_seed(training.seed)
        model = add_adapters(model, plan, lora)
    freeze_parts(model, plan, bias=lora.lora_bias)
    cast_parts(model, dtype)
    trains_vision = any(plan.of(part) != "frozen" for part in VISION_SIDE)
    base.model.link_vision_without_images = trains_vision or training.world_size > 1
    return model


def choose_kernel(model_args: ModelArguments, dtype: torch.dtype) -> str:
    """Return the attention kernel that the flags ask for, or the best one that runs."""
    if model_args.attn_implementation:
        return model_args.attn_implementation
    if model_args.disable_flash_attn2:
        logger.warning("--disable_flash_attn2: attention runs on SDPA")
    return choose_attention(dtype, disable_flash_attn2=model_args.disable_flash_attn2)
