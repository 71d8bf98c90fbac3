"""Adapters whose products are added without copies: the same model to PEFT, and to every regime."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.testing import assert_close

from phi3v.model.loading import load_model
from phi3v.model.recompute import set_regime
from phi3v.training.adapters import fuse_products

NAMES = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "out_proj"]


def adapted(folder: Any, dtype: torch.dtype, dropout: float = 0.0) -> Any:
    config = LoraConfig(
        r=4,
        target_modules=NAMES,
        lora_alpha=6,
        lora_dropout=dropout,
        init_lora_weights=False,
        use_rslora=True,
    )
    return get_peft_model(load_model(folder, dtype=dtype), config).train()


def train(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(3, 90, (1, 24))
    half = model.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert gradients and all("lora_" in name for name in gradients)
    return loss.detach(), gradients


@pytest.mark.parametrize("regime", ["none", "selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_peft(
    tiny_folder: Any, regime: Any, dropout: float
) -> None:
    plain = adapted(tiny_folder, torch.float64, dropout)
    fused = copy.deepcopy(plain)
    set_regime(fused, regime)
    fuse_products(fused, in_place=regime != "selective")
    assert_close(train(fused), train(plain), rtol=1e-9, atol=1e-9)


def test_half_precision_comes_no_further_from_the_truth_than_peft(tiny_folder: Any) -> None:
    """A product that is added while it is made is rounded once, not three times."""
    plain = adapted(tiny_folder, torch.bfloat16)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fuse_products(fused, in_place=True)
    _, truth = train(exact)
    errors = []
    for model in (fused, plain):
        _, gradients = train(model)
        errors.append(sum(float((gradients[n] - truth[n]).square().sum()) for n in truth))
    assert 0 < errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("safe", [False, True])
def test_peft_merges_and_unmerges_them(tiny_folder: Any, safe: bool) -> None:
    plain = adapted(tiny_folder, torch.float64)
    fused = copy.deepcopy(plain)
    fuse_products(fused, in_place=True)
    fused.merge_adapter(safe_merge=safe)
    fused.unmerge_adapter()
    assert_close(fused.state_dict(), plain.state_dict())
    merged = fused.merge_and_unload(safe_merge=safe).state_dict()
    assert_close(merged, plain.merge_and_unload().state_dict())


@pytest.mark.parametrize("safe", [False, True])
def test_merging_leaves_the_type_of_the_base(tiny_folder: Any, safe: bool) -> None:
    fused = adapted(tiny_folder, torch.bfloat16)
    fuse_products(fused, in_place=True)
    before = {name: value.dtype for name, value in fused.state_dict().items()}
    fused.merge_adapter(safe_merge=safe)
    fused.unmerge_adapter()
    assert {name: value.dtype for name, value in fused.state_dict().items()} == before


def test_an_adapter_can_be_made_anew(tiny_folder: Any) -> None:
    fused = adapted(tiny_folder, torch.float32)
    fuse_products(fused, in_place=True)
    module = next(m for m in fused.modules() if hasattr(m, "lora_variant"))
    module.update_layer("default", r=2, lora_alpha=4, config=fused.peft_config["default"])
    assert module.lora_A["default"].weight.shape[0] == 2


def test_doras_magnitudes_are_left_to_peft(tiny_folder: Any) -> None:
    config = LoraConfig(r=4, target_modules=["qkv_proj"], use_dora=True)
    model = get_peft_model(load_model(tiny_folder), config)
    fuse_products(model, in_place=True)
    kinds = {
        type(m.lora_variant["default"]).__name__
        for m in model.modules()
        if hasattr(m, "lora_variant")
    }
    assert kinds == {"DoraLinearVariant"}
