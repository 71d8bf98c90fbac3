"""The host never waits for the device in a training step, and nothing below what trains is kept."""

from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from phi3v import Phi3VForCausalLM
from phi3v.data.collator import Collator
from phi3v.data.encoding import Example
from phi3v.model import vision
from phi3v.model.recompute import set_regime
from phi3v.model.tiny import tiny_config

# What makes the host read a value of the device.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Waits(TorchDispatchMode):
    """Lists the operations that wait for the device, or that copy to it and wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool
            for group in args[1:]
            if isinstance(group, list | tuple)
            for one in group
        )
        target = kwargs.get("device")
        crosses = (
            name == "_to_copy"
            and target is not None
            and torch.device(target).type != args[0].device.type
            and not kwargs.get("non_blocking")
        )
        if by_mask or crosses or name.startswith(READS):
            self.found.append(str(func))
        return func(*args, **kwargs)


def examples(processor: Any, pictures: list[Image.Image]) -> list[Example]:
    """Text only, one picture, two pictures; the last 3 tokens are supervised."""
    made = []
    for own in ([], pictures[:1], pictures[1:]):
        tags = "".join(f"<|image_{number + 1}|>\n" for number in range(len(own)))
        batch = processor(
            tags + "What is this?", own or None, return_tensors="pt", pixel_format="compact"
        )
        ids = batch["input_ids"][0]
        labels = ids.clone()
        labels[:-3] = -100
        one = Example(input_ids=ids, labels=labels, image_sizes=[], num_dropped_turns=0)
        if own:
            one["pixel_values"] = batch["pixel_values"]
            one["image_sizes"] = [tuple(size) for size in batch["image_sizes"].tolist()]
        made.append(one)
    return made


def batches(processor: Any, pictures: list[Image.Image]) -> dict[str, dict[str, Any]]:
    text, one, two = examples(processor, pictures)
    collate = Collator(0, processor.image_token_id, padding_free=True)
    made = {
        "padded": Collator(0, processor.image_token_id)([text, one, two]),
        "without padding": collate([text, one, two]),
        "text only": collate([text]),
        "shared": collate([[[one, dict(one), dict(one)], [two], [text]]]),
    }
    assert any(prefix for _, _, prefix in made["shared"]["segments"])
    return made


def test_the_guard_sees_waits() -> None:
    with Waits() as waits:
        ids = torch.ones(3)
        ids[ids > 0].sum().item()
        torch.ones(2).to("meta")
    assert len(waits.found) == 3


@pytest.mark.parametrize(
    ("kind", "checkpointed", "kernel"),
    [
        *((kind, False, "sdpa") for kind in ("padded", "without padding", "text only", "shared")),
        *((kind, True, "sdpa") for kind in ("padded", "without padding", "text only", "shared")),
        ("padded", False, "eager"),
    ],
)
def test_a_training_step_never_waits(
    processor: Any,
    pictures: Any,
    small_tokenizer: Any,
    kind: str,
    checkpointed: bool,
    kernel: str,
) -> None:
    # The meta device has no values to read: what passes there waits on no device.
    config = tiny_config(small_tokenizer, hidden_size=32, vision_hidden_size=32)
    with torch.device("meta"):
        model = Phi3VForCausalLM._from_config(config, attn_implementation=kernel).train()
    model.model.link_vision_without_images = True
    if checkpointed:
        set_regime(model, "full")
    batch = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in batches(processor, pictures)[kind].items()
    }
    with Waits() as waits:
        loss = model(**batch, num_items_in_batch=torch.ones((), device="meta")).loss
        loss.backward()
    assert waits.found == []


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_padded_on_the_right_need_no_mask(
    make_model: Any, processor: Any, pictures: Any, kernel: str
) -> None:
    batch = batches(processor, pictures)["padded"]
    lengths = batch["document_lengths"]
    assert lengths.min() < lengths.max() == batch["labels"].shape[1]
    mask = (torch.arange(batch["labels"].shape[1]) < lengths).long()
    masked = {**batch, "attention_mask": mask, "document_lengths": None}
    losses, gradients = [], []
    for own in (batch, masked):
        # The rotary factors switch between the lengths of these rows.
        model = make_model(original_max_position_embeddings=int(lengths.min()))
        model.config._attn_implementation = kernel
        model = model.double().train()
        losses.append(model(**own).loss)
        losses[-1].backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("padding_free", [False, True])
def test_places_from_the_collator_give_the_same_gradients(
    make_model: Any, processor: Any, pictures: Any, padding_free: bool
) -> None:
    collate = Collator(0, processor.image_token_id, padding_free=padding_free)
    batch = collate(examples(processor, pictures))
    losses, gradients = [], []
    for dropped in ((), ("image_places", "label_places")):
        model = make_model().double().train()
        own = {name: value for name, value in batch.items() if name not in dropped}
        losses.append(model(**own).loss)
        losses[-1].backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_places_that_do_not_fit_the_pictures_are_refused(
    make_model: Any, processor: Any, pictures: Any
) -> None:
    batch = Collator(0, processor.image_token_id)(examples(processor, pictures))
    batch["image_places"] = batch["image_places"][:-1]
    with pytest.raises(ValueError, match="image places but the images make"):
        make_model()(**batch)


def test_a_frozen_tower_encodes_at_most_the_budget_of_crops_at_once(
    make_model: Any, processor: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    tower = model.model.vision_embed_tokens.img_processor.requires_grad_(False)
    seen: list[int] = []
    tower.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    batch = Collator(0, processor.image_token_id)(examples(processor, pictures))
    whole = model(**batch).loss
    monkeypatch.setattr(vision, "CROP_BUDGET", 3)
    parts = model(**batch).loss
    assert seen == [8, 3, 3, 2]
    torch.testing.assert_close(parts, whole)


def saved_by_module(model: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Count what autograd keeps, by the module that is running (tower, or number of a layer)."""
    counts: dict[str, int] = {}
    running = ["outside"]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        counts[running[-1]] = counts.get(running[-1], 0) + 1
        return tensor

    watched = {"tower": model.model.vision_embed_tokens.img_processor}
    watched |= {str(number): layer for number, layer in enumerate(model.model.layers)}
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(lambda *_: running.pop() and None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch).loss.backward()
    return counts


@pytest.mark.parametrize("checkpointed", [False, True])
def test_nothing_is_kept_below_the_first_trained_parameter(
    make_model: Any, processor: Any, pictures: Any, checkpointed: bool
) -> None:
    model = make_model(num_hidden_layers=4).train()
    model.requires_grad_(False)
    model.model.layers[2].mlp.down_proj.requires_grad_(True)
    if checkpointed:
        set_regime(model, "full")
    batch = Collator(0, processor.image_token_id, padding_free=True)(examples(processor, pictures))
    counts = saved_by_module(model, batch)
    if not checkpointed:
        # The checkpoint itself notes inputs, for the time of the layer only.
        assert {"tower", "0", "1"}.isdisjoint(counts)
        assert counts["2"] > 0 and counts["3"] > 0
    assert [name for name, one in model.named_parameters() if one.grad is not None] == [
        "model.layers.2.mlp.down_proj.weight"
    ]


def test_a_frozen_tower_keeps_nothing_beside_a_trained_projection(
    make_model: Any, processor: Any, pictures: Any
) -> None:
    model = make_model().train()
    model.model.vision_embed_tokens.img_processor.requires_grad_(False)
    batch = Collator(0, processor.image_token_id, padding_free=True)(examples(processor, pictures))
    counts = saved_by_module(model, batch)
    assert "tower" not in counts
    assert counts["0"] > 0


def test_gradients_come_in_one_order_with_and_without_pictures(
    make_model: Any, processor: Any, pictures: Any
) -> None:
    """ZeRO-2 sums gradients as they come; processes with other batches must agree."""
    orders = []
    for kind in ("without padding", "text only"):
        model, order = make_model().train(), list[str]()
        model.model.link_vision_without_images = True
        for name, one in model.named_parameters():
            note = partial(lambda to, name, _: to.append(name), order, name)
            one.register_post_accumulate_grad_hook(note)
        model(**batches(processor, pictures)[kind]).loss.backward()
        orders.append(order)
    assert orders[0] == orders[1]
