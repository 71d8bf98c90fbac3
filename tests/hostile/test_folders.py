"""Folders of strangers with damaged files: they work, or end in a documented error.

Hypothesis damages one file at a time. The quick tests draw always the same few cases; PHI3V_FUZZ
names another number of cases, which are new in every run (see SECURITY.md).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.mutations import damaged_bytes, damaged_header, damaged_json
from tests.hostile.opening import DOCUMENTED, use_adapter, use_model, use_processor

from phi3v import load_processor

CASES = int(os.environ.get("PHI3V_FUZZ", "0"))
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors"]
PROCESSOR_FILES = [
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "processor_config.json", "chat_template.json"),
    "added_tokens.json",
]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def damage(file: Path, use: Callable[[], None], cases: int) -> None:
    """Damage a file in many ways; an absent one is taken for an empty object."""
    content = file.read_bytes() if file.is_file() else b"{}"
    kinds: dict[str, Callable[[bytes], st.SearchStrategy[bytes]]] = {
        ".json": damaged_json,
        ".safetensors": damaged_header,
    }

    @settings(
        max_examples=CASES or cases,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kinds.get(file.suffix, damaged_bytes)(content))
    def try_one(damaged: bytes) -> None:
        file.write_bytes(damaged)
        try:
            use()
        except DOCUMENTED as error:
            assert str(error), "an error says what is wrong"

    try_one()


def use_of(folder: Path, name: str, processor: Any) -> Callable[[], None]:
    """What is done with a folder of which this file is damaged."""
    if name in PROCESSOR_FILES:
        return lambda: use_processor(folder)
    if name in MODEL_FILES:
        return lambda: use_model(folder, processor)
    return lambda: use_adapter(folder, processor, folder.parent / "merged")


@pytest.mark.parametrize("name", [*MODEL_FILES, *PROCESSOR_FILES])
def test_a_damaged_file_of_a_model_is_explained(folder: Path, name: str) -> None:
    damage(folder / name, use_of(folder, name, load_processor(folder)), cases=8)


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_damaged_file_of_an_adapter_is_explained(
    adapter: Path, small_folder: Path, name: str
) -> None:
    damage(adapter / name, use_of(adapter, name, load_processor(small_folder)), cases=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODEL_FILES, *PROCESSOR_FILES])
def test_many_damaged_files_of_a_model_are_explained(folder: Path, name: str) -> None:
    damage(folder / name, use_of(folder, name, load_processor(folder)), cases=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_many_damaged_files_of_an_adapter_are_explained(
    adapter: Path, small_folder: Path, name: str
) -> None:
    damage(adapter / name, use_of(adapter, name, load_processor(small_folder)), cases=60)
