"""The loss: token mean, chunks, nothing supervised, accumulation, checkpointing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.model.counting import peak_bytes
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from phi3v import Phi3VForCausalLM
from phi3v.model import loss as loss_module
from phi3v.model.loss import supervised_loss

Make = Callable[..., Phi3VForCausalLM]


@pytest.fixture
def head() -> nn.Linear:
    return nn.Linear(8, 50, bias=False)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 50, (3, 20))
    labels[0, :9], labels[2] = -100, -100
    return torch.randn(3, 20, 8, requires_grad=True), labels


def test_loss_is_the_mean_over_supervised_tokens(
    head: nn.Linear, batch: tuple[Tensor, Tensor]
) -> None:
    hidden, labels = batch
    logits = head(hidden)[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    assert_close(supervised_loss(hidden, labels, head), expected)


@pytest.mark.parametrize("count", [100, torch.tensor(100)], ids=["int", "tensor"])
def test_number_of_the_whole_step_divides_the_sum(
    head: nn.Linear, batch: tuple[Tensor, Tensor], count: Tensor | int
) -> None:
    own = (batch[1][:, 1:] != -100).sum()
    mean = supervised_loss(*batch, head)
    found = supervised_loss(*batch, head, num_items_in_batch=count)
    assert_close(found, mean * own / 100)


def test_chunks_change_nothing(
    head: nn.Linear, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[Tensor, ...]:
        loss = supervised_loss(*batch, head)
        return loss, *torch.autograd.grad(loss, [batch[0], head.weight])

    whole = run()
    monkeypatch.setattr(loss_module, "CHUNK", 4)
    for found, expected in zip(run(), whole, strict=True):
        assert_close(found, expected)


def losses_and_gradients(
    head: nn.Module, hidden: Tensor, labels: Tensor, count: Any
) -> tuple[Tensor, ...]:
    hidden = hidden.detach().requires_grad_()
    loss = supervised_loss(hidden, labels, head, num_items_in_batch=count)
    own = [one for one in head.parameters() if one.requires_grad]
    return loss.detach(), *torch.autograd.grad(loss, [hidden, *own])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_made_with_the_logits_are_those_of_autograd(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, frozen: bool, dtype: torch.dtype
) -> None:
    head = nn.Linear(8, 50, bias=False, dtype=dtype).requires_grad_(not frozen)
    hidden, labels = batch[0].to(dtype), batch[1]
    monkeypatch.setattr(loss_module, "CHUNK", 6)
    found = losses_and_gradients(head, hidden, labels, 7)
    head.register_forward_hook(lambda *_: None)  # the way through the module
    expected = losses_and_gradients(head, hidden, labels, 7)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other.to(one.dtype), rtol=tolerance, atol=tolerance)


def test_autocast_rounds_the_products_only(batch: tuple[Tensor, Tensor], head: nn.Linear) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_and_gradients(head, *batch, 5)
        head.register_forward_hook(lambda *_: None)
        expected = losses_and_gradients(head, *batch, 5)
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_places_without_a_target_count_nothing(head: nn.Linear) -> None:
    hidden, targets = torch.randn(1, 6, 8), torch.tensor([[1, 2, -100, 4, -100, 6]])
    places = torch.arange(1, 6)
    listed = supervised_loss(hidden, targets, head, num_items_in_batch=1, label_places=places)
    assert_close(listed, supervised_loss(hidden, targets, head, num_items_in_batch=1))


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_does_not_grow_with_vocabulary_times_length(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 32)
    width, vocabulary = 8, 4000
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen)

    def peak(length: int) -> int:
        hidden = torch.randn(1, length, width, requires_grad=True)
        labels = torch.randint(0, vocabulary, (1, length))
        return peak_bytes(lambda: supervised_loss(hidden, labels, head).backward())

    # Some copies of states and their places: nothing of the size of a vocabulary.
    grown = (peak(512) - peak(256)) / 256
    assert 0 < grown < 8 * width * 4 < vocabulary * 4 / 10


def test_the_head_runs_once_and_its_products_are_three(head: nn.Linear) -> None:
    hidden = torch.randn(1, 2001, 8, requires_grad=True)
    labels = torch.randint(0, 50, (1, 2001))
    with FlopCounterMode(display=False) as counter:
        supervised_loss(hidden, labels, head).backward()
    assert counter.get_total_flops() == 3 * 2 * 2000 * 8 * 50


@pytest.mark.parametrize("count", [None, 0, 12, torch.tensor(0)])
def test_nothing_supervised_is_zero_with_a_graph(head: nn.Linear, count: Any) -> None:
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    loss = supervised_loss(hidden, torch.full((2, 5), -100), head, num_items_in_batch=count)
    loss.backward()
    assert loss == 0
    assert head.weight.grad is not None and not head.weight.grad.any()
    assert hidden.grad is not None and not hidden.grad.any()


def gradients(model: Phi3VForCausalLM) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(first: Phi3VForCausalLM, second: Phi3VForCausalLM) -> None:
    expected = gradients(second)
    assert gradients(first).keys() == expected.keys()
    for name, gradient in gradients(first).items():
        # Key biases have no true gradient, only noise.
        assert_close(gradient, expected[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: n + m)


def supervised(processor: Any, pictures: Any, **kwargs: Any) -> dict[str, Any]:
    texts = ["<|image_1|>\nWhat is it?", "Hello", "<|image_1|><|image_2|>Which of both?", "No."]
    rows = [pictures[:1], [], pictures[1:], []]
    batch = processor(
        texts, rows, padding=True, padding_side="right", return_tensors="pt", **kwargs
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[labels == processor.image_token_id] = -100
    return dict(batch) | {"labels": labels}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(
    make_model: Make, processor: Any, pictures: Any, reentrant: bool
) -> None:
    batch = supervised(processor, pictures)
    plain, checkpointed = make_model().train(), make_model().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        # Reentrant checkpoints need an input with a gradient.
        checkpointed.enable_input_require_grads()
    runs: list[int] = []
    tower = checkpointed.model.vision_embed_tokens.img_processor.vision_model.encoder
    for layer in (tower.layers[0], checkpointed.model.layers[0]):
        # Recomputing stops inside the last module: only its start is seen.
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    losses = [model(**batch).loss for model in (plain, checkpointed)]
    for loss in losses:
        loss.backward()
    assert_close(losses[0], losses[1], rtol=0, atol=0)
    if not reentrant:
        # Forward and again in backward, decoder and tower.
        assert len(runs) == 4
        assert_same_gradients(checkpointed, plain)
    else:
        decoder = [name for name in gradients(plain) if ".layers." in name and "vision" not in name]
        for name in decoder:
            assert_close(gradients(checkpointed)[name], gradients(plain)[name])


def test_checkpointing_works_over_frozen_embeddings(
    make_model: Make, processor: Any, pictures: Any
) -> None:
    batch = supervised(processor, pictures)
    models = make_model().train(), make_model().train()
    models[1].gradient_checkpointing_enable()
    for model in models:
        model.requires_grad_(False)
        model.model.layers[0].self_attn.qkv_proj.requires_grad_(True)
        model(**batch).loss.backward()
        assert len(gradients(model)) == 1
    assert_same_gradients(*models)


def test_four_small_batches_train_like_one(make_model: Make, processor: Any, pictures: Any) -> None:
    one, four = make_model().train(), make_model().train()
    batch = supervised(processor, pictures)
    total = (batch["labels"][:, 1:] != -100).sum()
    loss = one(**batch).loss
    loss.backward()
    images = [slice(0, 1), None, slice(1, 3), None]
    parts = []
    for row, own in enumerate(images):
        length = int(batch["attention_mask"][row].sum())
        small = {
            name: batch[name][row : row + 1, :length]
            for name in ("input_ids", "attention_mask", "labels")
        }
        if own is not None:
            small |= {name: batch[name][own] for name in ("pixel_values", "image_sizes")}
        parts.append(four(**small, num_items_in_batch=total).loss)
        parts[-1].backward()
    assert_close(torch.stack(parts).sum(), loss)
    assert_same_gradients(four, one)
