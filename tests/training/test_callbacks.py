import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from phi3v.training.callbacks import GradientCheck, TokenCounter


def check(model: nn.Module, loss: torch.Tensor, tmp_path) -> GradientCheck:
    """Watch one backward pass as the trainer does."""
    watcher = GradientCheck()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state, control = TrainerState(), TrainerControl()
    watcher.on_train_begin(args, state, control, model=model)
    loss.backward()
    watcher.on_pre_optimizer_step(args, state, control, model=model)
    return watcher


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_parameter_without_gradient_stops_the_run(tmp_path) -> None:
    model = two_layers()
    loss = model[1](torch.ones(1, 2)).sum()
    with pytest.raises(RuntimeError, match=r"2 parameters were to be trained.* first '0\.weight'"):
        check(model, loss, tmp_path)


def test_frozen_parameter_with_a_gradient_stops_the_run(tmp_path) -> None:
    model = two_layers()
    loss = model(torch.ones(1, 2)).sum()
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones(2, 2)
    model[0].bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"frozen parameters got a gradient: 0\.weight"):
        check(model, loss, tmp_path)


def test_a_gradient_of_zero_counts_as_one(tmp_path) -> None:
    model = two_layers()
    assert check(model, 0 * model(torch.ones(1, 2)).sum(), tmp_path).checked


def test_tokens_are_counted_with_and_without_padding() -> None:
    counter = TokenCounter()
    labels = torch.tensor([[-100, 5, 6], [-100, 7, -100]])
    counter.add({"labels": labels, "document_lengths": torch.tensor([[3], [2]])})
    counter.add({"labels": labels[:1]})
    assert counter.read() == (9, 8, 5)
