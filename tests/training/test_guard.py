"""Losses and gradients that are not finite stop a run or skip a step, and name the records."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import Run
from transformers import TrainerControl, TrainerState, TrainingArguments

from phi3v import cli
from phi3v.training.guard import CurveWatch, NotFiniteError, NumericsGuard
from phi3v.training.trainer import Phi3VTrainer

NAN, FINE = torch.tensor(float("nan")), torch.tensor(1.0)


def guard(folder: Path, mode: Any = "stop", **options: Any) -> NumericsGuard:
    return NumericsGuard(mode, **({"checks_gradient": True, "folder": folder} | options))


def test_finite_numbers_pass(tmp_path: Path) -> None:
    watcher = guard(tmp_path)
    watcher.look()
    for step in (1, 2):
        assert watcher.add_loss(step, ["a"], FINE) is FINE
        assert not watcher.add_gradient(step, 1e30)
    watcher.look()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_first_loss_that_is_not_finite_names_its_records_and_the_last_good_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    watcher = guard(tmp_path)
    for step in (4, 5, 6):
        watcher.add_loss(step, [f"fine {step}"], FINE)
        watcher.add_loss(step, [f"bad {step}"], torch.tensor(bad) if step > 4 else FINE)
        watcher.add_gradient(step, FINE)
    with pytest.raises(NotFiniteError) as caught:
        watcher.look()
    text = str(caught.value)
    assert "loss of step 5 is not finite" in text and "bad 5" in text
    assert "fine 5" not in text and "bad 6" not in text
    assert "checkpoint-4" in text and "checkpoint-6" not in text


def test_gradient_alone_names_all_records_of_the_step(tmp_path: Path) -> None:
    watcher = guard(tmp_path)
    watcher.add_loss(1, ["a"], FINE)
    watcher.add_loss(1, ["b"], FINE)
    watcher.add_gradient(1, NAN)
    with pytest.raises(NotFiniteError, match="gradient of step 1.*\n  a\n  b\n.*no checkpoint"):
        watcher.look()


def test_gradients_of_float16_may_overflow(tmp_path: Path) -> None:
    watcher = guard(tmp_path, checks_gradient=False)
    watcher.add_loss(1, ["a"], FINE)
    watcher.add_gradient(1, NAN)
    watcher.look()


def test_skipped_steps_are_counted_until_they_are_too_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = guard(tmp_path, "skip")
    assert watcher.add_loss(1, ["odd one"], NAN) == 0
    assert watcher.add_gradient(1, NAN)
    assert "odd one" in caplog.text and watcher.num_skipped == 1
    watcher.add_loss(2, ["b"], FINE)
    assert not watcher.add_gradient(2, FINE)
    with pytest.raises(NotFiniteError, match="10 steps before it"):
        for step in range(3, 20):
            watcher.add_loss(step, ["c"], NAN)
            watcher.add_gradient(step, NAN)
    assert watcher.num_skipped == 12


def watched(losses: list[float], norms: list[float], folder: Path) -> None:
    watch = CurveWatch(folder)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        state = TrainerState(global_step=step)
        watch.on_log(args, state, TrainerControl(), logs={"loss": loss, "grad_norm": norm})


@pytest.mark.parametrize(
    ("losses", "norms"),
    [([2.0] * 30, [1.0] * 30), ([2.0 - 0.01 * step for step in range(30)], [0.0] * 30)],
    ids=["constant loss", "no gradient"],
)
def test_dead_run_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, losses: list[float], norms: list[float]
) -> None:
    watched(losses, norms, tmp_path)
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    assert "learns nothing" in caplog.text


def test_exploding_run_is_reported_with_the_last_checkpoint_from_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20, 40):
        (tmp_path / f"checkpoint-{step}").mkdir()
    watched([3.0 - 0.1 * step for step in range(25)] + [8.0 + s for s in range(20)], [1.0] * 45,
            tmp_path)  # fmt: skip
    assert len(caplog.records) == 1
    assert "the run explodes" in caplog.text and "checkpoint-20" in caplog.text


def test_a_spike_and_a_noisy_curve_are_no_explosion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = [1.0 + 0.5 * (step % 3) for step in range(40)]
    losses[20] = 50.0
    watched(losses, [1.0] * 40, tmp_path)
    assert not caplog.records


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, seen: list[list[str]]) -> None:
    """Make the loss of one step NaN, and note the records of every batch."""
    compute, train = Phi3VTrainer.compute_loss, Phi3VTrainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        seen.append(inputs["records"])
        return train(self, model, inputs, *args)

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 == step else loss

    monkeypatch.setattr(Phi3VTrainer, "training_step", training_step)
    monkeypatch.setattr(Phi3VTrainer, "compute_loss", compute_loss)


RARE_LOG = ["--logging_steps", "100", "--per_device_train_batch_size", "2", "--max_steps", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("padding_free", ["True", "False"])
def test_run_stops_before_anything_bad_is_saved(
    start: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padding_free: str
) -> None:
    seen: list[list[str]] = []
    spoil_step(monkeypatch, 3, seen)
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--padding_free", padding_free]
    with pytest.raises(NotFiniteError) as caught:
        start(*RARE_LOG, *saving)
    text = str(caught.value)
    assert "loss of step 3 is not finite" in text and "checkpoint-2" in text
    assert len(seen[2]) == 2 and all(name in text for name in seen[2])
    assert all(name.startswith("record 'r") for name in seen[2])
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_skipped_step_changes_no_weight_and_is_counted(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_step(monkeypatch, 2, [])
    skipped = ["--on_nonfinite", "skip", "--logging_steps", "1", "--weight_decay", "0.5"]
    run = start(*RARE_LOG, *skipped, "--max_steps", "2")
    logs = [line for line in run.trainer.state.log_history if "loss" in line]
    assert logs[1]["skipped_steps"] == 1 and logs[1]["loss"] == 0
    with monkeypatch.context() as patch:
        spoil_step(patch, 99, [])
        once = start(*RARE_LOG, *skipped, "--max_steps", "1", folder="once")
    for (name, one), two in zip(run.model.named_parameters(), once.model.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.slow
def test_command_ends_with_status_76_and_no_traceback(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--learning_rate", "1e30", "--max_steps", "8", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *flags, *words]) == 76
    captured = capsys.readouterr().err
    assert "phi3v train: stopped: the" in captured and "is not finite" in captured
    assert "Traceback" not in captured
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert "output_dir" in json.dumps((tmp_path / "out" / "run.yaml").read_text())


def test_skipping_contradicts_what_steps_by_itself() -> None:
    from phi3v.training.checks import check_arguments
    from phi3v.training.flags import parse_arguments

    arguments, _ = parse_arguments(
        ["--model_id", "m", "--data_path", "d", "--use_cpu", "--on_nonfinite", "skip"]
    )
    arguments.training.fp16 = True
    with pytest.raises(ValueError, match="--on_nonfinite skip contradicts --fp16"):
        check_arguments(*arguments[:4])
