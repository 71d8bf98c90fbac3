from pathlib import Path
from typing import Any

import pytest
import torch

from phi3v.inference.chat import ChatSession
from phi3v.model.loading import load_model, load_processor
from phi3v.model.processing import Phi3VProcessor


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> Any:
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def processor(tiny_folder: Path) -> Phi3VProcessor:
    return load_processor(tiny_folder)


@pytest.fixture
def session(model: Any, processor: Phi3VProcessor) -> ChatSession:
    return ChatSession(model, processor)


@pytest.fixture(scope="session")
def adapter_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the answers, without processor files, as PEFT itself saves it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(tiny_folder), config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapters") / "run_7"
    adapted.save_pretrained(folder)
    return folder
