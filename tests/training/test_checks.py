"""Contradictions are refused by the names of both flags; odd settings get a hint."""

import pytest
import torch

from phi3v.training.checks import check_arguments
from phi3v.training.flags import parse_arguments


def check(*words: str) -> list[str]:
    needed = ["--model_id", "m", "--data_path", "d.json", "--use_cpu", "--report_to", "none"]
    return check_arguments(*parse_arguments([*needed, *words])[0][:4])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--bits 3", ["--bits"]),
        ("--bits 4", ["--bits", "--lora_enable"]),
        ("--bits 4 --lora_enable --lora_init pissa", ["--bits", "--lora_init"]),
        ("--vision_lora", ["--vision_lora", "--lora_enable"]),
        ("--vision_lora --lora_enable", ["--vision_lora", "--freeze_vision_tower"]),
        ("--use_dora", ["--use_dora", "--lora_enable"]),
        ("--use_rslora", ["--use_rslora", "--lora_enable"]),
        ("--loraplus_lr_ratio 16", ["--loraplus_lr_ratio", "--lora_enable"]),
        ("--lora_weight_path x", ["--lora_weight_path", "--lora_enable"]),
        (
            "--freeze_llm --freeze_vision_tower --tune_img_projector False",
            ["--freeze_llm", "--freeze_vision_tower", "--tune_img_projector"],
        ),
        (
            "--disable_flash_attn2 --attn_implementation flash_attention_2",
            ["--disable_flash_attn2", "--attn_implementation"],
        ),
        ("--attn_implementation flex_attention", ["--attn_implementation", "CPU"]),
        ("--per_device_train_batch_size 0", ["--per_device_train_batch_size"]),
        ("--per_device_eval_batch_size -1", ["--per_device_eval_batch_size"]),
        ("--gradient_accumulation_steps 0", ["--gradient_accumulation_steps"]),
        ("--num_train_epochs 0", ["--num_train_epochs", "--max_steps"]),
        ("--lora_rank 0", ["--lora_rank"]),
        ("--lora_dropout 1", ["--lora_dropout"]),
        ("--num_crops 17", ["--num_crops"]),
        ("--max_num_frames 0", ["--max_num_frames"]),
        ("--num_lora_modules 0", ["--num_lora_modules"]),
        ("--eval_image_folder x", ["--eval_image_folder", "--eval_data_path"]),
        ("--eval_strategy epoch", ["--eval_strategy", "--eval_data_path"]),
        ("--early_stopping_patience 2", ["--early_stopping_patience", "--load_best_model_at_end"]),
        ("--label_smoothing_factor 0.1", ["--label_smoothing_factor"]),
        ("--use_liger_kernel", ["--use_liger_kernel"]),
    ],
)
def test_contradiction_names_all_flags(words: str, named: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        check(*words.split())
    assert [flag for flag in named if flag not in str(caught.value)] == []


def test_answers_of_a_model_that_the_launcher_shards_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "--eval_generate --eval_data_path x --eval_strategy steps"
    check(*words.split())
    # As `accelerate launch --config_file scripts/fsdp2.yaml` sets it.
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="--eval_generate contradicts FSDP"):
        check(*words.split())


def test_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "phi3v.training.checks.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    with pytest.raises(ValueError, match="--report_to wandb: its package is not installed"):
        check("--report_to", "wandb")


@pytest.mark.skipif(torch.cuda.is_available(), reason="works on a GPU")
def test_8_bit_dora_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="--use_dora with --bits 8"):
        check("--lora_enable", "--use_dora", "--bits", "8")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--learning_rate 1e-4 --vision_lr 1e-4", "closer than 5x"),
        ("--freeze_vision_tower --vision_lr 1e-6", "--vision_lr has no effect with --freeze"),
        ("--tune_img_projector False --projector_lr 1e-6", "--projector_lr has no effect"),
        ("--quant_type fp4", "--quant_type has no effect with --bits 16"),
        ("--num_lora_modules 3", "--num_lora_modules has no effect with --lora_enable False"),
    ],
)
def test_odd_setting_gets_one_hint(words: str, hint: str) -> None:
    (found,) = check(*words.split())
    assert hint in found


@pytest.mark.parametrize(
    "words",
    [
        "--learning_rate 1e-4 --vision_lr 2e-5",
        "--lora_enable --freeze_llm",
        "--lora_enable --vision_lora --freeze_vision_tower --vision_lr 1e-5",
        "--lora_enable --freeze_llm --freeze_vision_tower --tune_img_projector False",
    ],
)
def test_usual_setting_gets_no_hint(words: str) -> None:
    assert check(*words.split()) == []
