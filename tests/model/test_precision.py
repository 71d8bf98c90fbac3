"""Types other than float32: bfloat16, autocast, parts that differ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM

Make = Callable[..., Phi3VForCausalLM]
BFLOAT16 = torch.bfloat16


@pytest.fixture
def batch(processor: Any, pictures: Any) -> dict[str, Any]:
    inputs = dict(processor("<|image_1|><|image_2|>Which?", pictures[:2], return_tensors="pt"))
    labels = inputs["input_ids"].clone()
    labels[labels == processor.image_token_id] = -100
    return inputs | {"labels": labels}


def assert_trains_like_float32(
    model: Phi3VForCausalLM, batch: dict[str, Any], expected: Phi3VForCausalLM
) -> None:
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    # Eight bits of mantissa through few layers.
    assert_close(loss, expected(**batch).loss, rtol=0.02, atol=0.02)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bfloat16_model_trains(make_model: Make, batch: dict[str, Any], attention: str) -> None:
    # Pixels stay float32, as the processor gives them.
    assert_trains_like_float32(make_model(attention).to(BFLOAT16), batch, make_model())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float32_model_trains_under_autocast(
    make_model: Make, batch: dict[str, Any], attention: str
) -> None:
    with torch.autocast("cpu", dtype=BFLOAT16):
        assert_trains_like_float32(make_model(attention), batch, make_model())


PARTS = (
    "vision_embed_tokens",
    "vision_embed_tokens.img_processor",
    "vision_embed_tokens.img_projection",
)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_float32_part_trains_beside_a_bfloat16_model(
    make_model: Make, batch: dict[str, Any], part: str, autocast: bool
) -> None:
    model = make_model().to(BFLOAT16)
    model.model.get_submodule(part).float()
    with torch.autocast("cpu", dtype=BFLOAT16, enabled=autocast):
        assert_trains_like_float32(model, batch, make_model())


def test_bfloat16_vision_side_feeds_a_float32_decoder(
    make_model: Make, batch: dict[str, Any]
) -> None:
    model = make_model()
    model.model.vision_embed_tokens.to(BFLOAT16)
    assert_trains_like_float32(model, batch, make_model())


@pytest.mark.parametrize("name", ["img_projection", "img_processor", "vision_embed_tokens"])
def test_parts_that_peft_saves_in_float32_run_beside_a_bfloat16_model(
    make_model: Make, batch: dict[str, Any], name: str
) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model().to(BFLOAT16)
    settings = LoraConfig(target_modules=["qkv_proj"], modules_to_save=[name], r=2)
    model = get_peft_model(base, settings)
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key:
            parameter.data = parameter.data.float()
    model.train()(**batch).loss.backward()
    copies = {
        key: p
        for key, p in model.named_parameters()
        if "modules_to_save" in key and p.requires_grad
    }
    with_gradient = [key for key, p in copies.items() if p.grad is not None]
    assert with_gradient
    assert not any("encoder.layers.2." in key for key in with_gradient)
    with torch.no_grad():
        model.eval().generate(
            **{key: value for key, value in batch.items() if key != "labels"}, max_new_tokens=2
        )


def test_lora_on_the_projection_runs_beside_a_bfloat16_model(
    make_model: Make, batch: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["img_projection.0", "img_projection.2", "fc1", "qkv_proj"]
    model = get_peft_model(make_model().to(BFLOAT16), LoraConfig(target_modules=targets, r=2))
    model.train()(**batch).loss.backward()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_logits_are_float32_in_any_type(make_model: Make) -> None:
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert make_model().to(BFLOAT16)(ids).logits.dtype == torch.float32
