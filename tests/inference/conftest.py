from pathlib import Path
from typing import Any

import pytest

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
