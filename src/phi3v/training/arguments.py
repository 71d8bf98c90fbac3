"""The arguments of ``phi3v train``, the seed's flags among them; each help text is printed."""

import os
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from phi3v.training.data_arguments import DataArguments
from phi3v.training.sharding import read_config, zero_stage

__all__ = ["DataArguments", "LoraArguments", "ModelArguments", "Phi3VTrainingArguments"]


@dataclass
class ModelArguments:
    """Which model, and which of its parts train."""

    model_id: str = field(
        metadata={"help": "Checkpoint folder or hub id of a Phi-3-vision or Phi-3.5-vision model."}
    )
    bits: int = field(
        default=16, metadata={"help": "Bits of the frozen base: 16, or 8 or 4 with bitsandbytes."}
    )
    double_quant: bool = field(
        default=True, metadata={"help": "With --bits 4: quantise the scales too."}
    )
    quant_type: Literal["nf4", "fp4"] = field(
        default="nf4", metadata={"help": "With --bits 4: the number format."}
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = (
        field(
            default=None,
            metadata={
                "help": "Attention kernel; default: flash_attention_2 where it runs, else sdpa."
            },
        )
    )
    disable_flash_attn2: bool = field(
        default=False, metadata={"help": "Use SDPA even where FlashAttention 2 is installed."}
    )
    freeze_vision_tower: bool = field(
        default=False, metadata={"help": "Freeze the vision tower and the separators."}
    )
    freeze_llm: bool = field(
        default=False,
        metadata={"help": "Freeze the language model. With --lora_enable it is frozen anyway."},
    )
    tune_img_projector: bool = field(
        default=True, metadata={"help": "Train the image projection fully."}
    )


@dataclass
class LoraArguments:
    """Low-rank adapters."""

    lora_enable: bool = field(
        default=False, metadata={"help": "Train adapters on the language model."}
    )
    vision_lora: bool = field(
        default=False,
        metadata={
            "help": "Adapters on the vision tower too, and on the projection unless "
            "--tune_img_projector; needs --lora_enable and --freeze_vision_tower."
        },
    )
    lora_rank: int = field(default=128, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=256, metadata={"help": "Scale of the adapters, over rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    lora_bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "Which biases of adapted parts train."}
    )
    lora_preset: Literal["all", "attention", "mlp"] = field(
        default="all",
        metadata={"help": "Modules to adapt: all linear layers and embeddings, or one kind."},
    )
    lora_namespan_exclude: str | None = field(
        default=None,
        metadata={
            "help": "List of name parts, such as \"['lm_head', 'embed_tokens']\"; modules that "
            "contain one of them get no adapter."
        },
    )
    num_lora_modules: int = field(
        default=-1, metadata={"help": "Adapt only the last so many modules; -1 means all."}
    )
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed adapters (DoRA)."})
    use_rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / sqrt(rank) (rsLoRA)."}
    )
    lora_init: Literal["default", "gaussian", "pissa", "olora"] = field(
        default="default", metadata={"help": "How adapters start."}
    )
    loraplus_lr_ratio: float | None = field(
        default=None,
        metadata={"help": "LoRA+: learning rate of the B matrices over that of the A matrices."},
    )
    lora_weight_path: str | None = field(
        default=None, metadata={"help": "Adapter folder whose weights the run starts from."}
    )


@dataclass
class Phi3VTrainingArguments(TrainingArguments):
    """The library's training arguments, with the seed project's defaults and three rates."""

    output_dir: str | None = field(
        default="output/test_train", metadata={"help": "Folder of the run."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write into a folder that is not empty; an older run in it is removed."},
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Batches per optimizer step."}
    )
    vision_lr: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of vision tower and separators; default: --learning_rate."
        },
    )
    projector_lr: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the image projection; default: --learning_rate."},
    )
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})
    logging_dir: str = field(default="./tf-logs", metadata={"help": "TensorBoard folder."})
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "tensorboard, wandb, none, or several."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are no numbers out of the log; the host then waits for the "
            "device in every batch."
        },
    )
    dataloader_num_workers: int = field(
        default=4, metadata={"help": "Processes that read pictures and videos."}
    )
    activation_memory: Literal["auto", "none", "selective", "full"] = field(
        default="auto",
        metadata={
            "help": "What layers make again in the backward pass instead of keeping it: none; "
            "selective, elementwise work only; full, the whole layer, as --gradient_checkpointing "
            "True does. auto: the first of them that fits on the GPU; none on a CPU."
        },
    )
    fuse_elementwise: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "Run norms, gates and rotations as one kernel each; auto: on a GPU where "
            "PyTorch's compiler works. --torch_compile compiles whole layers instead."
        },
    )
    padding_free: bool = field(
        default=True,
        metadata={"help": "Put the samples of a batch behind one another instead of padding them."},
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Fill rows with whole samples up to --pack_tokens; a batch is one row."},
    )
    pack_tokens: int = field(default=8192, metadata={"help": "With --packing: tokens of a row."})
    share_images: bool = field(
        default=False,
        metadata={
            "help": "With --packing: encode pictures once for all records that ask about them."
        },
    )
    max_branches: int = field(
        default=16,
        metadata={"help": "With --share_images: most records that share their pictures."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Kept for the library; records have no columns."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations without a better --metric_for_best_model; "
            "needs --load_best_model_at_end."
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Resume although training records or decisive flags differ from those of the "
            "checkpoint; learning rates and optimizer stay those of the checkpoint."
        },
    )
    save_on_signal: bool = field(
        default=True,
        metadata={
            "help": "On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 finish the step, save a checkpoint and "
            "end with status 75; a second signal ends at once."
        },
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "Where a loss or gradient is NaN or infinite: stop the run and name the "
            "records of the step, or skip the step and count it; skip waits for the device in "
            "every step."
        },
    )
    eval_generate: bool = field(
        default=False,
        metadata={
            "help": "Let the model answer validation questions at each evaluation, score the "
            "answers, and show some. Evaluates at the start too, unless --eval_on_start is given."
        },
    )
    eval_generate_samples: int = field(
        default=64, metadata={"help": "With --eval_generate: questions, drawn once by --seed."}
    )
    eval_generate_tokens: int = field(
        default=64, metadata={"help": "With --eval_generate: most tokens of an answer."}
    )
    eval_metrics: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "With --eval_generate: metrics of phi3v evaluate, or auto; each can be the "
            "--metric_for_best_model."
        },
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Evaluation keeps the loss only."}
    )

    @property
    def is_under_fsdp(self) -> bool:
        """Whether FSDP shards the model, by ``--fsdp`` or by accelerate's launcher."""
        return bool(self.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"

    @property
    def zero_stage(self) -> int:
        """Stage of ``--deepspeed``, 0 to 3."""
        return zero_stage(read_config(self.deepspeed)) if self.deepspeed else 0

    @property
    def shards_weights(self) -> bool:
        """Whether a layer has its weights only while it is called: under FSDP or ZeRO-3."""
        return self.is_under_fsdp or self.zero_stage == 3
