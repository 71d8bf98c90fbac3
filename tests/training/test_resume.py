"""An interrupted run that is resumed ends bit for bit as the unbroken one."""

import json
from collections.abc import Callable

import pytest
import torch
from tests.training.conftest import Run
from transformers import TrainerCallback

pytestmark = pytest.mark.slow

MODES = {
    "full": [],
    "LoRA and the vision side": ["--lora_enable", "--lora_dropout", "0.2"],
    "vision LoRA": ["--lora_enable", "--vision_lora", "--freeze_vision_tower"],
    "PiSSA": [
        *("--lora_enable", "--lora_init", "pissa"),
        *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']"),
    ],
}
# Eight samples in batches of two: an epoch has four steps, the third lies inside the second epoch.
STEPS = ["--per_device_train_batch_size", "2", "--save_strategy", "steps", "--save_steps", "1"]


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


@pytest.mark.parametrize("mode", MODES)
def test_resumed_run_equals_the_unbroken_one(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    flags = [*MODES[mode], *STEPS, "--max_steps", "7", "--lr_scheduler_type", "cosine"]
    unbroken = start(*flags, folder="unbroken")
    with monkeypatch.context() as patch:
        from phi3v.training.trainer import Phi3VTrainer

        make = Phi3VTrainer.__init__

        def make_and_stop(self, **kwargs):
            make(self, **kwargs)
            self.add_callback(StopAfter(5))

        patch.setattr(Phi3VTrainer, "__init__", make_and_stop)
        start(*flags, folder="broken")
    resumed = start(*flags, "--resume_from_checkpoint", "true", folder="broken")

    assert resumed.losses() == unbroken.losses()
    assert len(unbroken.losses()) == 7
    expected = dict(unbroken.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_named_checkpoint_is_resumed(start: Callable[..., Run]) -> None:
    first = start(*STEPS, "--max_steps", "3", folder="first")
    again = start(
        *STEPS,
        *("--max_steps", "3", "--resume_from_checkpoint", str(first.folder / "checkpoint-1")),
        folder="second",
    )
    assert again.losses() == first.losses()


def test_checkpoints_hold_only_what_trains(start: Callable[..., Run]) -> None:
    run = start(
        *("--lora_enable", "--freeze_vision_tower", "--tune_img_projector", "False"),
        *STEPS,
        *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']"),
    )
    checkpoint = run.folder / "checkpoint-1"
    adapter = (checkpoint / "adapter_model.safetensors").stat().st_size
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert adapter < 4 * trainable + 20_000
    assert (checkpoint / "optimizer.pt").stat().st_size < 2 * 4 * trainable + 60_000
    assert not list(checkpoint.glob("model*.safetensors"))
    assert not list(checkpoint.glob("*.bin.index.json"))
    weights = {
        file.name for file in checkpoint.iterdir() if file.suffix in (".safetensors", ".bin")
    }
    assert weights - {"training_args.bin"} == {"adapter_model.safetensors"}


def test_a_second_start_resumes_nothing_unasked(start: Callable[..., Run]) -> None:
    start(*STEPS)
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint true"):
        start(*STEPS)
    fresh = start(*STEPS, "--overwrite_output_dir", "True")
    assert len(fresh.losses()) == 2


def test_the_saved_arguments_repeat_the_run(start: Callable[..., Run]) -> None:
    first = start("--lora_enable", "--lora_dropout", "0.1", folder="first")
    from phi3v.training import train
    from phi3v.training.flags import parse_arguments

    target = first.folder.parent / "again"
    arguments, _ = parse_arguments([str(first.folder / "run.yaml"), "--output_dir", str(target)])
    again = train.run(arguments)
    losses = [line["loss"] for line in again.state.log_history if "loss" in line]
    assert losses == first.losses()
    assert json.loads((target / "parts.json").read_text()) == json.loads(
        (first.folder / "parts.json").read_text()
    )
