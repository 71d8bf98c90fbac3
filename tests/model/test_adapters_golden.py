"""Adapters made by PEFT around the original, opened with `load_model`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import golden_cases as gc
from torch import Tensor
from torch.testing import assert_close

from phi3v import load_model

ADAPTERS = ("lora", "lora_all_linear", "dora", "rslora")


def open_adapter(golden: Path, case_id: str, folder: Path) -> Any:
    """Load a golden adapter from a copy that names its base by its path on this machine."""
    item = gc.case(golden, case_id)
    for file in (golden / item["adapter"]).iterdir():
        shutil.copyfile(file, folder / file.name)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(golden / "checkpoints" / item["checkpoint"])
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return load_model(folder)


def assert_logits_match(golden: Path, logits: Tensor, stored: Tensor) -> None:
    assert_close(logits[..., gc.index(golden)["probe_ids"]], stored, **gc.LOGITS)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_adapter_equals_original(
    golden: Path, tmp_path: Path, checkpoint: str, adapter: str
) -> None:
    case_id = f"{checkpoint}_{adapter}"
    item, stored = gc.case(golden, case_id), gc.tensors(golden, case_id)
    model = open_adapter(golden, case_id, tmp_path)
    for source in item["inputs_from"]:
        name = source.split("_", 1)[1]
        inputs = gc.inputs(golden, source)
        labels = gc.tensors(golden, source)["labels"]
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
            loss = model(**inputs, labels=labels).loss
        assert_close(outputs.hidden_states[-1], stored[f"{name}/last_hidden"], **gc.LOGITS)
        assert_logits_match(golden, outputs.logits, stored[f"{name}/logits_probe"])
        assert_close(loss.double(), stored[f"{name}/loss"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_gradients_of_an_adapter_equal_original(
    golden: Path, tmp_path: Path, checkpoint: str, adapter: str
) -> None:
    case_id = f"{checkpoint}_{adapter}"
    item, stored = gc.case(golden, case_id), gc.tensors(golden, case_id)
    model = open_adapter(golden, case_id, tmp_path).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    source = item["grad_inputs_from"]
    labels = gc.tensors(golden, source)["labels"]
    loss = model(**gc.inputs(golden, source), labels=labels).loss
    loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert sorted(gradients) == sorted(item["grad_param_names"])
    assert_close(loss.detach().double(), stored["grad_loss"][0], rtol=1e-5, atol=0)
    norms = torch.stack([gradients[name].double().norm() for name in item["grad_param_names"]])
    # Key projections of the tower have rounding noise instead of a gradient in their biases.
    assert_close(norms, stored["grad_norms"], rtol=1e-3, atol=1e-6)
    for key, value in stored.items():
        if key.startswith("grad/"):
            assert_close(gradients[key.removeprefix("grad/")], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_merged_adapter_equals_original(
    golden: Path, tmp_path: Path, checkpoint: str, adapter: str
) -> None:
    case_id = f"{checkpoint}_{adapter}"
    stored = gc.tensors(golden, case_id)
    model = open_adapter(golden, case_id, tmp_path).merge_and_unload()
    with torch.no_grad():
        logits = model(**gc.inputs(golden, f"{checkpoint}_text_answer")).logits
    assert_logits_match(golden, logits, stored["merged/text_answer/logits_probe"])
    weights = model.state_dict()
    for key, value in stored.items():
        if key.endswith(".weight") and key.startswith("merged/"):
            name = key.removeprefix("merged/")
            if name.startswith("img_projection"):
                name = f"model.vision_embed_tokens.{name}"
            assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
