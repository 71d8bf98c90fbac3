"""The arguments of ``phi3v train``: the seed project's flags and all of the library's Trainer.

Each field's help text is what ``phi3v train --help`` prints.
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

RECOMMENDED_VISION_LR_RATIO = 5


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
class DataArguments:
    """What to train on."""

    data_path: str = field(metadata={"help": "Training records: LLaVA JSON or JSONL."})
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that picture and video paths are relative to."},
    )
    eval_data_path: str | None = field(default=None, metadata={"help": "Validation records."})
    eval_image_folder: str | None = field(
        default=None, metadata={"help": "Folder of the validation media; default: --image_folder."}
    )
    num_crops: int = field(
        default=16, metadata={"help": "Largest number of crops of a picture, 1 to 16."}
    )
    max_num_frames: int = field(default=10, metadata={"help": "Largest number of video frames."})
    max_seq_length: int = field(
        default=131072,
        metadata={"help": "Longest sample in tokens; turns behind it are dropped and counted."},
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
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "tensorboard, wandb, none, or several."}
    )
    dataloader_num_workers: int = field(
        default=4, metadata={"help": "Processes that read pictures and videos."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Kept for the library; records have no columns."}
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Evaluation keeps the loss only."}
    )


def check_arguments(
    model: ModelArguments, lora: LoraArguments, data: DataArguments, training: TrainingArguments
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
    _check_ranges(lora, data)
    return _hints(model, training)


def _check_ranges(lora: LoraArguments, data: DataArguments) -> None:
    for flag, value, low in (
        ("lora_rank", lora.lora_rank, 1),
        ("lora_alpha", lora.lora_alpha, 1),
        ("max_num_frames", data.max_num_frames, 1),
        ("max_seq_length", data.max_seq_length, 1),
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


def _hints(model: ModelArguments, training: TrainingArguments) -> list[str]:
    hints = []
    vision_lr = getattr(training, "vision_lr", None)
    limit = training.learning_rate / RECOMMENDED_VISION_LR_RATIO
    if vision_lr is not None and not model.freeze_vision_tower and vision_lr > limit:
        hints.append(
            f"--vision_lr {vision_lr:g} is closer than {RECOMMENDED_VISION_LR_RATIO}x to "
            f"--learning_rate {training.learning_rate:g}; 5 to 10 times smaller is the usual choice"
        )
    return hints
