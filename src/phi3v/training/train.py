"""The command ``phi3v train``: from arguments to an output folder."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import set_seed

from phi3v.data.collator import Collator
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.processes import (
    decided_by_first,
    disconnect,
    one_voice,
    quiet_unless_first,
    rank,
)
from phi3v.model.loading import (
    choose_attention,
    is_adapter_folder,
    load_config,
    load_model,
    load_processor,
    quantization_config,
)
from phi3v.training.activations import apply_activation_memory, apply_compiler, for_trainer
from phi3v.training.adapters import add_adapters
from phi3v.training.arguments import ModelArguments, Phi3VTrainingArguments
from phi3v.training.batching import pack_training_set
from phi3v.training.callbacks import SkipCounter
from phi3v.training.checks import check_arguments
from phi3v.training.datasets import build_datasets, stream_position
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.guard import STATUS_NOT_FINITE, NotFiniteError
from phi3v.training.interruption import STATUS_INTERRUPTED, last_words
from phi3v.training.output import choose_checkpoint, clear_earlier_run, write_run_files
from phi3v.training.parts import (
    VISION_SIDE,
    cast_parts,
    format_table,
    freeze_parts,
    plan_parts,
    table_of_parts,
)
from phi3v.training.processes import run_as_command
from phi3v.training.summary import summarize
from phi3v.training.trainer import Phi3VTrainer

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
        attn_implementation=_attention(model_args, dtype),
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


def _attention(model_args: ModelArguments, dtype: torch.dtype) -> str:
    if model_args.attn_implementation:
        return model_args.attn_implementation
    if model_args.disable_flash_attn2:
        logger.warning("--disable_flash_attn2: attention runs on SDPA")
    return choose_attention(dtype, disable_flash_attn2=model_args.disable_flash_attn2)


def run(arguments: RunArguments) -> Phi3VTrainer:
    """Train as the arguments say and write the output folder; no result if interrupted.

    Returns:
        The trainer after the last step, or after the one in which a signal stopped it.

    Raises:
        OSError: The output folder cannot be written any more.
        ValueError: Contradicting flags, bad data or a damaged checkpoint; see the message.
        FileNotFoundError: Model, data or media are missing.
        FileExistsError: The output folder is in use.
    """
    with one_voice():
        trainer, checkpoint = prepare(arguments)
    with trainer.stop_request:
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.is_interrupted:
            return trainer
        trainer.save_result(compute_dtype(arguments.training))
    trainer.tokens.sum_over_processes(trainer.accelerator)
    if trainer.is_world_process_zero():
        print(summarize(trainer, Path(str(trainer.args.output_dir))), flush=True)
    return trainer


def prepare(arguments: RunArguments) -> tuple[Phi3VTrainer, str | None]:
    """Check everything, load model and data, and mark the output folder.

    Returns:
        The trainer and the checkpoint to resume from.
    """
    model_args, lora, data, training, _ = arguments
    for hint in check_arguments(model_args, lora, data, training):
        logger.warning(hint)
    assert training.output_dir is not None
    folder = Path(training.output_dir)
    checkpoint = decided_by_first(
        lambda: choose_checkpoint(
            folder, training.resume_from_checkpoint, overwrite=training.overwrite_output_dir
        )
    )
    use_one_gpu(training)
    os.environ["TENSORBOARD_LOGGING_DIR"] = training.logging_dir
    config = load_config(model_args.model_id)
    set_seed(training.seed)
    processor = load_processor(model_args.model_id, num_crops=data.num_crops)
    train_set: Dataset
    train_set, eval_set = build_datasets(
        data,
        processor,
        resumed=checkpoint is not None,
        seed=training.seed if training.data_seed is None else training.data_seed,
        position=stream_position(training, checkpoint) if data.streaming else None,
    )
    skips = None
    if data.on_bad_record == "skip":
        skips = SkipCounter(data.max_bad_records, train_set.num_bad_records)
    if training.packing:
        if "per_device_train_batch_size" not in arguments.given:
            training.per_device_train_batch_size = 1
        assert isinstance(train_set, SupervisedDataset)
        train_set = pack_training_set(train_set, config, training)
    model = build_model(arguments)
    apply_activation_memory(arguments, model, config, train_set)
    apply_compiler(model, training)
    rows = table_of_parts(model, training, lora)
    trainer = Phi3VTrainer(
        base_folder=model_args.model_id,
        lora=lora,
        model=model,
        args=for_trainer(training),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=Collator(
            processor.tokenizer.pad_token_id,
            processor.image_token_id,
            padding_free=training.padding_free,
        ),
        processor=processor,
        skips=skips,
    )
    if trainer.is_world_process_zero():
        if checkpoint is None:
            for name in clear_earlier_run(folder):
                logger.warning("removed %s of the earlier run", name)
        write_run_files(folder, arguments, rows)
        print(format_table(rows), flush=True)
    return trainer, checkpoint


def use_one_gpu(training: Phi3VTrainingArguments) -> None:
    """Keep a process without a launcher to one GPU; the library would split batches over all.

    Pictures travel beside the rows of a batch, so a split by rows would tear them apart.
    """
    if training.n_gpu > 1:
        logger.warning(
            "1 of %d GPUs is used; to use all: torchrun --nproc-per-node %d -m "
            "phi3v.training.train ...",
            training.n_gpu,
            training.n_gpu,
        )
        training._n_gpu = 1


def main(argv: list[str]) -> int:
    """Run ``phi3v train``."""
    level = logging.WARNING if rank() == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    with one_voice(), quiet_unless_first():
        arguments, messages = parse_arguments(argv)
    for message in messages:
        logger.warning(message)
    try:
        trainer = run(arguments)
    except NotFiniteError as error:
        if rank() == 0:
            print(f"phi3v train: stopped: {error}", file=sys.stderr)
        return STATUS_NOT_FINITE
    disconnect()
    if not trainer.is_interrupted:
        return 0
    if rank() == 0:
        folder = str(trainer.args.output_dir)
        print(last_words(trainer.stop_request, trainer.state, folder), file=sys.stderr)
    return STATUS_INTERRUPTED


if __name__ == "__main__":
    sys.exit(run_as_command("train", main))
