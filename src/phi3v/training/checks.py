"""Contradictions and impossible values among the arguments, found before anything is loaded."""

import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_flash_attn_2_available

from phi3v.training.arguments import (
    DataArguments,
    LoraArguments,
    ModelArguments,
    Phi3VTrainingArguments,
)
from phi3v.training.features import check_feature_cache
from phi3v.training.hints import find_hints
from phi3v.training.optimizer import check_optimizer


def check_arguments(
    model: ModelArguments,
    lora: LoraArguments,
    data: DataArguments,
    training: Phi3VTrainingArguments,
) -> list[str]:
    """Refuse contradictions and collect hints.

    Returns:
        Hints for settings that are allowed but odd.

    Raises:
        ValueError: Two flags contradict each other, or a value is impossible; the message names
            them.
    """
    if model.bits not in (4, 8, 16):
        raise ValueError(f"--bits is {model.bits}, expected 16, 8 or 4")
    if model.bits != 16 and not lora.lora_enable:
        raise ValueError(
            f"--bits {model.bits} needs --lora_enable True: quantised weights cannot be trained"
        )
    if lora.vision_lora and not lora.lora_enable:
        raise ValueError("--vision_lora needs --lora_enable True")
    if lora.vision_lora and not model.freeze_vision_tower:
        raise ValueError(
            "--vision_lora needs --freeze_vision_tower True: adapters and full training cannot "
            "share the vision tower"
        )
    for name in ("use_dora", "use_rslora", "loraplus_lr_ratio", "lora_weight_path"):
        if getattr(lora, name) and not lora.lora_enable:
            raise ValueError(f"--{name} needs --lora_enable True")
    if model.freeze_llm and not lora.lora_enable and model.freeze_vision_tower:
        if not model.tune_img_projector:
            raise ValueError(
                "--freeze_llm, --freeze_vision_tower and --tune_img_projector False together leave "
                "nothing to train; unfreeze a part or set --lora_enable True"
            )
    if model.disable_flash_attn2 and model.attn_implementation == "flash_attention_2":
        raise ValueError(
            "--disable_flash_attn2 contradicts --attn_implementation flash_attention_2"
        )
    check_feature_cache(model, lora, data, training)
    check_optimizer(training)
    _check_stack(model, lora, training)
    _check_ranges(lora, data)
    _check_library_settings(data, training)
    _check_eval_generate(data, training)
    if not data.check_data and training.packing:
        raise ValueError(
            "--packing needs --check_data True: packs are planned from the lengths it counts"
        )
    hints = find_hints(model, lora, training) + _check_streaming(data, training)
    if data.on_bad_record == "error" and data.max_bad_records != DataArguments.max_bad_records:
        hints.append("--max_bad_records has no effect with --on_bad_record error")
    return hints


def _check_stack(
    model: ModelArguments, lora: LoraArguments, training: Phi3VTrainingArguments
) -> None:
    """Refuse what the installed libraries cannot do together."""
    if model.bits != 16 and lora.lora_init == "pissa":
        raise ValueError(
            f"--lora_init pissa contradicts --bits {model.bits}: PiSSA needs the exact weights"
        )
    if model.bits == 8 and lora.use_dora and not torch.accelerator.is_available():
        raise ValueError("--use_dora with --bits 8 needs a GPU; --bits 4 works without")
    flash = model.attn_implementation == "flash_attention_2"
    if flash and not is_flash_attn_2_available():
        raise ValueError(
            "--attn_implementation flash_attention_2: flash-attn is not installed or finds no GPU; "
            "install it, or leave the flag out to use SDPA"
        )
    on_cpu = training.use_cpu or not torch.accelerator.is_available()
    if model.attn_implementation == "flex_attention" and on_cpu:
        raise ValueError(
            "--attn_implementation flex_attention has no gradients on a CPU; leave the flag out to "
            "use SDPA"
        )
    if training.use_liger_kernel:
        raise ValueError(
            "--use_liger_kernel: the library has no such kernels for this model; leave it out, "
            "--fuse_elementwise does the same by PyTorch's compiler"
        )


def _check_ranges(lora: LoraArguments, data: DataArguments) -> None:
    for flag, value, low in (
        ("lora_rank", lora.lora_rank, 1),
        ("lora_alpha", lora.lora_alpha, 1),
        ("max_num_frames", data.max_num_frames, 1),
        ("max_seq_length", data.max_seq_length, 1),
        ("shuffle_buffer", data.shuffle_buffer, 1),
        ("max_image_pixels", data.max_image_pixels, 1),
        ("max_bad_records", data.max_bad_records, 0),
    ):
        if value < low:
            raise ValueError(f"--{flag} is {value}, expected at least {low}")
    if not 1 <= data.num_crops <= 16:
        raise ValueError(f"--num_crops is {data.num_crops}, expected 1 to 16")
    if not 0 <= lora.lora_dropout < 1:
        raise ValueError(f"--lora_dropout is {lora.lora_dropout}, expected 0 up to below 1")
    if lora.num_lora_modules == 0 or lora.num_lora_modules < -1:
        raise ValueError(
            f"--num_lora_modules is {lora.num_lora_modules}, expected -1 (all) or at least 1"
        )
    if data.eval_image_folder and not data.eval_data_path:
        raise ValueError("--eval_image_folder needs --eval_data_path")


def _check_streaming(data: DataArguments, training: Phi3VTrainingArguments) -> list[str]:
    """Refuse what a stream cannot do; returns hints."""
    if not data.streaming:
        is_idle = data.shuffle_buffer != DataArguments.shuffle_buffer
        return ["--shuffle_buffer has no effect with --streaming False"] if is_idle else []
    if training.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps: a stream has no end")
    if training.packing:
        raise ValueError(
            "--streaming contradicts --packing: packs are planned over the lengths of all records; "
            "--padding_free joins the samples of a batch without padding"
        )
    if training.train_sampling_strategy != "random":
        raise ValueError("--streaming contradicts --train_sampling_strategy: it has its own order")
    # A flag since transformers 5.15; before, the order was always kept.
    if not getattr(training, "dataloader_in_order", True):
        raise ValueError("--streaming contradicts --dataloader_in_order False: it is resumed by it")
    return ["--streaming: records are not checked before the run; phi3v check does that"]


def _check_library_settings(data: DataArguments, training: Phi3VTrainingArguments) -> None:
    if training.eval_strategy != "no" and not data.eval_data_path:
        strategy = IntervalStrategy(training.eval_strategy).value
        raise ValueError(f"--eval_strategy {strategy} needs --eval_data_path")
    if training.share_images and not training.packing:
        raise ValueError("--share_images needs --packing True")
    if training.num_train_epochs <= 0 and training.max_steps <= 0:
        raise ValueError(
            f"--num_train_epochs is {training.num_train_epochs:g}, expected more than 0, or "
            "--max_steps: nothing would be trained"
        )
    for flag, value in (
        ("per_device_train_batch_size", training.per_device_train_batch_size),
        ("per_device_eval_batch_size", training.per_device_eval_batch_size),
        ("gradient_accumulation_steps", training.gradient_accumulation_steps),
        ("pack_tokens", training.pack_tokens),
        ("max_branches", training.max_branches),
    ):
        if value < 1:
            raise ValueError(f"--{flag} is {value}, expected at least 1")
    if training.torch_compile and training.fuse_elementwise == "on":
        raise ValueError(
            "--fuse_elementwise on contradicts --torch_compile True, which fuses the same steps "
            "within whole layers; leave one of both out"
        )
    if training.gradient_checkpointing and training.activation_memory in ("none", "selective"):
        raise ValueError(
            "--gradient_checkpointing True contradicts --activation_memory "
            f"{training.activation_memory}: it means full; leave one of both out"
        )
    if training.packing and training.train_sampling_strategy != "random":
        raise ValueError("--packing contradicts --train_sampling_strategy: packs have their order")
    patience = training.early_stopping_patience
    if patience is not None and not training.load_best_model_at_end:
        raise ValueError("--early_stopping_patience needs --load_best_model_at_end True")
    if patience is not None and patience < 1:
        raise ValueError(f"--early_stopping_patience is {patience}, expected at least 1")
    if training.enable_jit_checkpoint:
        raise ValueError("--enable_jit_checkpoint: --save_on_signal does this; leave it out")
    if training.on_nonfinite == "skip" and (training.deepspeed or training.fp16):
        flag = "--deepspeed" if training.deepspeed else "--fp16"
        raise ValueError(
            f"--on_nonfinite skip contradicts {flag}: it decides by itself when the weights change"
        )
    if training.label_smoothing_factor:
        raise ValueError("--label_smoothing_factor is not supported; leave it out")
    for name in training.report_to or []:
        # Asking for all of them imports each that is installed.
        if name != "tensorboard" and name not in get_available_reporting_integrations():
            available = ", ".join([*get_available_reporting_integrations(), "none"])
            raise ValueError(
                f"--report_to {name}: its package is not installed; install it, or report to "
                f"one of {available}"
            )


def _check_eval_generate(data: DataArguments, training: Phi3VTrainingArguments) -> None:
    if not training.eval_generate:
        return
    if not data.eval_data_path:
        raise ValueError("--eval_generate needs --eval_data_path")
    if training.eval_strategy == "no":
        raise ValueError("--eval_generate contradicts --eval_strategy no; leave one of both out")
    if training.is_under_fsdp:
        raise ValueError(
            "--eval_generate contradicts FSDP: a model in shards cannot generate between two "
            "steps; score the result by phi3v evaluate"
        )
    for flag in ("eval_generate_samples", "eval_generate_tokens"):
        if getattr(training, flag) < 1:
            raise ValueError(f"--{flag} is {getattr(training, flag)}, expected at least 1")
