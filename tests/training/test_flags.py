"""Reading flags: the seed's names and defaults, YAML files, old flags, mistakes."""

import contextlib
import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from phi3v import cli
from phi3v.model import loading
from phi3v.training import arguments as our_arguments
from phi3v.training import building
from phi3v.training.checks import check_arguments
from phi3v.training.flags import RunArguments, parse_arguments, translate_old_flags

NEEDED = ["--model_id", "m", "--data_path", "d.json", "--use_cpu"]

# The list of the seed's README, and the defaults that its code alone documents.
SEED_DEFAULTS = {
    "output_dir": "output/test_train",
    "image_folder": None,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 4,
    "freeze_vision_tower": False,
    "tune_img_projector": True,
    "num_lora_modules": -1,
    "vision_lr": None,
    "projector_lr": None,
    "bf16": False,
    "lora_namespan_exclude": None,
    "max_seq_length": 131072,
    "num_crops": 16,
    "max_num_frames": 10,
    "bits": 16,
    "disable_flash_attn2": False,
    "report_to": ["tensorboard"],
    "logging_dir": "./tf-logs",
    "lora_rank": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "logging_steps": 1,
    "dataloader_num_workers": 4,
    "freeze_llm": False,
    "lora_enable": False,
    "vision_lora": False,
    "use_dora": False,
    "lora_bias": "none",
    "lora_weight_path": None,
    "double_quant": True,
    "quant_type": "nf4",
    "deepspeed": None,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
}
# A flag is a promise: this list changes on purpose only.
OUR_FLAGS = {
    *("eval_generate", "eval_generate_samples", "eval_generate_tokens", "eval_metrics"),
    *("model_id", "bits", "double_quant", "quant_type", "attn_implementation"),
    *("disable_flash_attn2", "freeze_vision_tower", "freeze_llm", "tune_img_projector"),
    *("lora_enable", "vision_lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_bias"),
    *("lora_preset", "lora_namespan_exclude", "num_lora_modules", "use_dora", "use_rslora"),
    *("lora_init", "loraplus_lr_ratio", "lora_weight_path"),
    *("data_path", "image_folder", "eval_data_path", "eval_image_folder", "num_crops"),
    *("max_num_frames", "max_seq_length", "streaming", "shuffle_buffer"),
    *("check_data", "on_bad_record", "max_bad_records"),
    *("exif_orientation", "max_image_pixels", "allow_urls", "allow_absolute_paths", "jpeg_draft"),
    *("overwrite_output_dir", "vision_lr", "projector_lr", "logging_dir"),
    *("early_stopping_patience", "activation_memory", "save_on_signal", "on_nonfinite"),
    *("fuse_elementwise", "cache_vision"),
    "resume_with_changes",
    *("padding_free", "packing", "pack_tokens", "share_images", "max_branches"),
}


def read(*words: str) -> RunArguments:
    return parse_arguments([*NEEDED, *words])[0]


def value(arguments: RunArguments, name: str) -> Any:
    owner = next(group for group in arguments[:4] if hasattr(group, name))
    return getattr(owner, name)


@pytest.mark.parametrize("name", SEED_DEFAULTS)
def test_flag_of_the_seed_has_its_documented_default(name: str) -> None:
    assert value(read(), name) == SEED_DEFAULTS[name]


def test_list_of_our_own_flags_is_frozen() -> None:
    theirs = {field.name for field in fields(TrainingArguments)}
    own = {
        field.name
        for group in (
            our_arguments.ModelArguments,
            our_arguments.LoraArguments,
            our_arguments.DataArguments,
            our_arguments.Phi3VTrainingArguments,
        )
        for field in fields(group)
    }
    # Until transformers 5.14, logging_dir was a flag of the library.
    assert own - theirs == OUR_FLAGS - theirs


@pytest.mark.parametrize("words", [["--lora_enable", "True"], ["--lora_enable"]])
def test_switch_works_with_and_without_its_value(words: list[str]) -> None:
    assert read(*words).lora.lora_enable is True


def test_false_turns_a_switch_off() -> None:
    assert read("--tune_img_projector", "False").model.tune_img_projector is False


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--warmup_ratio", "0.03"], "warmup_steps", 0.03),
        (["--evaluation_strategy", "no"], "eval_strategy", "no"),
        (["--per_gpu_train_batch_size", "3"], "per_device_train_batch_size", 3),
        (["--group_by_length", "True"], "train_sampling_strategy", "group_by_length"),
        (["--group_by_length", "False"], "train_sampling_strategy", "random"),
        (["--tf32", "True"], "tf32", None),
        (["--no_cuda", "True"], "use_cpu", True),
        (["--lazy_preprocess", "True"], "lora_enable", False),
        (["--cache_dir", "x"], "lora_enable", False),
        (["--save_safetensors", "True"], "lora_enable", False),
        (["--half_precision_backend", "auto"], "fp16", False),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else "",
)
def test_old_flag_is_translated_with_one_message(
    words: list[str], name: str, expected: Any
) -> None:
    arguments, messages = parse_arguments([*NEEDED, *words])
    assert value(arguments, name) == expected
    assert len(messages) == 1 and words[0] in messages[0]


@pytest.mark.parametrize(
    "words", [["--logging_dir", "x"], ["--overwrite_output_dir", "True"], ["--tf32", "False"]]
)
def test_old_flag_that_we_keep_needs_no_message(words: list[str]) -> None:
    assert parse_arguments([*NEEDED, *words])[1] == []


def test_old_flag_is_translated_with_an_equals_sign_too() -> None:
    assert translate_old_flags(["--warmup_ratio=0.1"])[0] == ["--warmup_steps", "0.1"]


def test_unknown_flag_exits_with_2_and_names_the_near_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", *NEEDED, "--lora_rnk", "4"]) == 2
    assert "did you mean --lora_rank?" in capsys.readouterr().err


def test_abbreviated_flag_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *NEEDED, "--lora_ra", "4"]) == 2


def test_missing_model_exits_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--data_path", "d.json"])
    assert caught.value.code == 2


def test_help_shows_our_flags_first() -> None:
    out = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stdout(out):
        cli.main(["train", "--help"])
    text = out.getvalue().split("options:")[1]
    assert caught.value.code == 0
    places = [text.index(flag) for flag in ("--model_id", "--lora_rank", "--data_path", "--optim ")]
    assert places == sorted(places)


def test_validation_data_is_evaluated_every_epoch_unless_told() -> None:
    assert read("--eval_data_path", "e.json").training.eval_strategy == "epoch"
    words = ("--eval_data_path", "e.json", "--eval_strategy", "steps", "--eval_steps", "5")
    assert read(*words).training.eval_strategy == "steps"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none"], []),
        (["tensorboard"], ["tensorboard"]),
        (["tensorboard", "wandb"], ["tensorboard", "wandb"]),
    ],
)
def test_report_to_takes_none_one_or_several(words: list[str], expected: list[str]) -> None:
    assert read("--report_to", *words).training.report_to == expected


def test_the_flags_of_the_seed_scripts_are_taken() -> None:
    arguments = read(
        *("--freeze_llm", "True", "--lora_enable", "True", "--vision_lora", "False"),
        *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']", "--lora_rank", "64"),
        *("--num_lora_modules", "-1", "--disable_flash_attn2", "False", "--bf16", "True"),
        *("--use_cpu", "True", "--fp16", "False", "--weight_decay", "0.", "--warmup_ratio", "0.03"),
        *("--lr_scheduler_type", "cosine", "--gradient_checkpointing", "True"),
        *("--save_strategy", "steps", "--save_steps", "200", "--save_total_limit", "10"),
        *("--lazy_preprocess", "True", "--learning_rate", "1e-4", "--vision_lr", "2e-6"),
    )
    check_arguments(*arguments[:4])


def test_disabling_flash_attention_means_sdpa(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, disabled = read().model, read("--disable_flash_attn2", "True").model
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    assert building.choose_kernel(plain, torch.bfloat16) == "flash_attention_2"
    assert building.choose_kernel(disabled, torch.bfloat16) == "sdpa"
    assert "attention runs on SDPA" in caplog.text
    assert building.choose_kernel(plain, torch.float32) == "sdpa"
