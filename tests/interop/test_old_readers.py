"""Releases of safetensors and tokenizers of two years ago read our files."""

import hashlib
import json
from pathlib import Path

import pytest
from tests.interop.conftest import Foreign

from phi3v import load_model, load_processor

pytestmark = pytest.mark.interop
TEXT = "<|user|>\nHow many? 12 \u00e9\u6570<|end|>\n<|assistant|>\n"


def test_they_read_what_we_wrote(foreign: Foreign, tiny_folder: Path) -> None:
    found = json.loads(foreign("readers", "old_reader.py", tiny_folder, TEXT))
    tokenizer = load_processor(tiny_folder).tokenizer
    assert found["ids"] == tokenizer(TEXT)["input_ids"]
    expected = {
        name: [list(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()]
        for name, value in load_model(tiny_folder).state_dict().items()
    }
    assert found["tensors"] == expected
