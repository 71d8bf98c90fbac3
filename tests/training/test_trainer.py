"""What a run computes: accumulation, checkpointing, evaluation, logs."""

import json
from collections.abc import Callable

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.training.conftest import Run
from torch.testing import assert_close

pytestmark = pytest.mark.slow

# One float32 step of AdamW moves by the sign of the gradient: rounding may turn it where it is 0.
SAME = {"atol": 1e-5, "rtol": 1e-5}


def assert_same_training(first: Run, second: Run) -> None:
    assert_close(first.losses(), second.losses(), **SAME)
    expected = dict(first.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert_close(parameter.detach(), expected[name].detach(), atol=1e-4, rtol=1e-4)


def batches(size: int, accumulation: int) -> list[str]:
    return [
        *("--per_device_train_batch_size", str(size)),
        *("--gradient_accumulation_steps", str(accumulation)),
        *("--optim", "sgd", "--learning_rate", "0.05", "--max_grad_norm", "0"),
    ]


def test_four_batches_of_one_train_as_one_batch_of_four(start: Callable[..., Run]) -> None:
    assert_same_training(start(*batches(1, 4), folder="1x4"), start(*batches(4, 1), folder="4x1"))


def test_padded_batches_train_as_batches_without_padding(start: Callable[..., Run]) -> None:
    assert_same_training(
        start(*batches(4, 1), "--padding_free", "False", folder="padded"),
        start(*batches(4, 1), folder="free"),
    )


@pytest.mark.parametrize(
    "mode",
    [
        [],
        ["--lora_enable", "--lora_namespan_exclude", "['lm_head', 'embed_tokens']"],
        ["--lora_enable", "--vision_lora", "--freeze_vision_tower"],
    ],
    ids=["full", "LoRA over frozen embeddings", "vision LoRA"],
)
def test_gradient_checkpointing_changes_nothing(start: Callable[..., Run], mode: list[str]) -> None:
    flags = [*mode, "--lora_dropout", "0"]
    kept = start(*flags, folder="kept")
    recomputed = start(*flags, "--gradient_checkpointing", "True", folder="recomputed")
    assert_same_training(kept, recomputed)
    assert_same_training(kept, start(*flags, "--activation_memory", "selective", folder="both"))
    assert "gradient_checkpointing: true" in (recomputed.folder / "run.yaml").read_text()


def test_evaluation_loss_does_not_depend_on_its_batch_size(
    start: Callable[..., Run], data_folder
) -> None:
    def eval_loss(size: int) -> float:
        run = start(
            *("--eval_data_path", str(data_folder / "data.json"), "--eval_strategy", "steps"),
            *("--eval_steps", "1", "--per_device_eval_batch_size", str(size)),
            folder=f"eval{size}",
        )
        return next(x["eval_loss"] for x in run.trainer.state.log_history if "eval_loss" in x)

    losses = [eval_loss(size) for size in (1, 3, 8)]
    assert_close(losses, [losses[0]] * 3, atol=1e-5, rtol=1e-5)


def test_best_checkpoint_is_kept_and_a_run_without_progress_stops(
    start: Callable[..., Run], data_folder
) -> None:
    run = start(
        *("--eval_data_path", str(data_folder / "data.json"), "--eval_strategy", "steps"),
        *("--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
        *("--load_best_model_at_end", "True", "--early_stopping_patience", "2"),
        *("--metric_for_best_model", "eval_loss", "--learning_rate", "30", "--max_steps", "20"),
        *("--optim", "sgd", "--lora_enable"),
    )
    losses = [x["eval_loss"] for x in run.trainer.state.log_history if "eval_loss" in x]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 20
    assert run.trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best + 1}")


def test_tensorboard_gets_loss_rate_and_speed(start: Callable[..., Run], tmp_path) -> None:
    start("--report_to", "tensorboard", "--logging_dir", str(tmp_path / "tb"))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in ("train/loss", "train/learning_rate", "train/tokens_per_second"):
        assert name in tags
        assert len(events.Scalars(name)) == 2


def test_a_run_ends_with_a_summary(start: Callable[..., Run], capsys) -> None:
    run = start("--lora_enable")
    output = capsys.readouterr().out
    assert "vision tower, unused" in output
    for word in ("steps", "supervised", "padding", "peak memory", "phi3v merge", str(run.folder)):
        assert word in output


def test_output_folder_is_complete(start: Callable[..., Run]) -> None:
    adapter = start("--lora_enable", folder="a").folder
    whole = start(folder="b").folder
    common = {
        *("run.yaml", "parts.json", "preprocessor_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "trainer_state.json"),
    }
    assert common | {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in adapter.iterdir()
    }
    assert common | {"config.json", "model.safetensors", "generation_config.json"} <= {
        path.name for path in whole.iterdir()
    }
    assert json.loads((adapter / "preprocessor_config.json").read_text())["num_crops"] == 2


def test_length_groups_hold_every_sample(start: Callable[..., Run]) -> None:
    run = start("--group_by_length", "True", "--num_train_epochs", "1", "--max_steps", "-1")
    assert len(run.losses()) == 2
    assert all(torch.isfinite(torch.tensor(run.losses())))
