"""The formulas of kept bytes against what small models really keep; equal gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.model.counting import kept_bytes
from torch import nn
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM
from phi3v.model.memory import Precision, activation_bytes, layer_bytes, tower_layer_bytes
from phi3v.model.recompute import set_regime
from phi3v.training.adapters import fuse_products

Make = Callable[..., Phi3VForCausalLM]
REGIMES = ("none", "selective", "full")
TOKENS = 48


def adapted(model: Phi3VForCausalLM, rank: int, dropout: float, **more: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    config = LoraConfig(r=rank, target_modules=names, lora_dropout=dropout, **more)
    return get_peft_model(model, config)


def kept_by_two_layers(
    make_model: Make,
    regime: str,
    precision: Precision,
    segments: list[tuple[int, int, int]],
    dtype: torch.dtype,
) -> int:
    """Twice two layers more: what is kept by anything else cancels out."""
    kept = []
    for num_layers in (2, 4):
        model = make_model(num_hidden_layers=num_layers, hidden_size=64, num_key_value_heads=2)
        model = model.to(dtype).train()
        if precision.rank:
            model = adapted(model, precision.rank, 0.1 if precision.dropout_mask else 0.0)
            fuse_products(model, in_place=regime != "selective")
        set_regime(model, regime)
        ids = torch.randint(3, 90, (1, TOKENS))
        labels = torch.full_like(ids, -100)
        labels[:, -2:] = 5
        batch = {"input_ids": ids, "labels": labels, "segments": segments}
        kept.append(kept_bytes(lambda model=model, batch=batch: model(**batch).loss))
    return kept[1] - kept[0]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision(element=4, stream=4), torch.float32),
        (Precision(element=2, stream=2), torch.bfloat16),
        (Precision(element=4, stream=4, many_segments=True), torch.float32),
        (Precision(element=4, stream=4, rank=4), torch.float32),
        (Precision(element=4, stream=4, rank=16), torch.float32),
        (Precision(element=4, stream=4, rank=4, dropout_mask=4), torch.float32),
    ],
    ids=["full-fp32", "full-bf16", "full-packed", "lora", "lora-wide", "lora-dropout"],
)
def test_a_decoder_layer_keeps_what_the_formula_says(
    make_model: Make, regime: str, precision: Precision, dtype: torch.dtype
) -> None:
    segments = [(TOKENS, 0, 0)]
    if precision.many_segments:
        segments = [(20, 0, 0), (TOKENS - 20, 0, 0)]
    found = kept_by_two_layers(make_model, regime, precision, segments, dtype)
    config = make_model(hidden_size=64, num_key_value_heads=2).config
    assert found / 2 / TOKENS == layer_bytes(config, regime, precision)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dora_keeps_what_the_formula_says(make_model: Make, regime: str, dropout: float) -> None:
    kept = {}
    for num_layers in (2, 4):
        model = make_model(num_hidden_layers=num_layers, hidden_size=64, num_key_value_heads=2)
        model = adapted(model.train(), 4, dropout, use_dora=True)
        set_regime(model, regime)
        for tokens in (TOKENS, 2 * TOKENS):
            ids = torch.randint(3, 90, (1, tokens))
            labels = ids.where(torch.arange(tokens) >= tokens - 2, -100)
            batch = {"input_ids": ids, "labels": labels, "segments": [(tokens, 0, 0)]}
            kept[num_layers, tokens] = kept_bytes(
                lambda model=model, batch=batch: model(**batch).loss
            )
    # It keeps norms of its weights, too, whatever the number of tokens.
    layers = [kept[4, tokens] - kept[2, tokens] for tokens in (TOKENS, 2 * TOKENS)]
    mask = 4 if dropout else 0
    precision = Precision(element=4, stream=4, rank=4, dropout_mask=mask, has_dora=True)
    assert (layers[1] - layers[0]) / 2 / TOKENS == layer_bytes(model.config, regime, precision)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_layer_of_a_trained_tower_keeps_what_the_formula_says(
    make_model: Make, regime: str
) -> None:
    kept = []
    for num_layers in (3, 5):
        model = make_model(num_vision_layers=num_layers, vision_hidden_size=64).train()
        set_regime(model, regime)
        tower = model.model.vision_embed_tokens.img_processor
        kept.append(kept_bytes(lambda tower=tower: tower(torch.zeros(2, 3, 112, 112))))
    found = (kept[1] - kept[0]) / 2 / 2
    assert found == tower_layer_bytes(model.config, regime, Precision(element=4, stream=4))


def test_regimes_are_strictly_ordered_at_the_published_sizes() -> None:
    from tests.model.test_cost import published_config

    config = published_config()
    for precision in (Precision(), Precision(rank=64), Precision(rank=64, dropout_mask=1)):
        sizes = [layer_bytes(config, regime, precision) for regime in REGIMES]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
        assert sizes[2] == 2 * 3072
    # In units of the hidden size: bytes of a token and layer.
    assert layer_bytes(config, "selective", Precision()) / 3072 == pytest.approx(22.7, abs=0.1)
    total = activation_bytes(config, "selective", Precision(), tokens=16384)
    assert total / 1e9 == pytest.approx(37.0, abs=1.0)


@pytest.mark.parametrize("method", ["full", "adapters"])
def test_regimes_give_the_same_gradients(
    make_model: Make, processor: Any, pictures: Any, method: str
) -> None:
    text = "<|image_1|>\n<|image_2|>\nWhat is shown?"
    batch = dict(processor(text, pictures[:2], return_tensors="pt", pixel_format="compact"))
    batch |= {"labels": batch["input_ids"].clone(), "image_sizes": batch["image_sizes"].tolist()}
    losses, gradients = [], []
    for regime in REGIMES:
        model = make_model().train()
        if method == "adapters":
            torch.manual_seed(1)
            model = adapted(model, 4, 0.1)
        set_regime(model, regime)
        torch.manual_seed(2)
        losses.append(model(**batch).loss)
        losses[-1].backward()
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    for loss, own in zip(losses[1:], gradients[1:], strict=True):
        assert_close(loss, losses[0], rtol=0, atol=0)
        assert_close(own, gradients[0], rtol=0, atol=0)


def test_selective_makes_no_wide_product_again(make_model: Make) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(3, 90, (1, 64))
    flops = {}
    for regime in REGIMES:
        model = make_model(num_hidden_layers=3, hidden_size=64).train()
        set_regime(model, regime)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids, segments=[(64, 0, 0)]).loss.backward()
        flops[regime] = counter.get_total_flops()
    assert flops["selective"] == flops["none"]
    assert flops["full"] > 1.2 * flops["none"]


def test_recomputing_does_not_reach_below_the_first_trained_parameter(make_model: Make) -> None:
    model = make_model(num_hidden_layers=4).train()
    model.requires_grad_(False)
    model.model.layers[2].mlp.down_proj.requires_grad_(True)
    set_regime(model, "full")
    runs: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    ids = torch.randint(3, 90, (1, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    assert runs == [0, 1, 2, 3, 3, 2]
