"""Adapter folders and files that do not belong together; each fault is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from phi3v import load_model, load_processor

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    model = get_peft_model(load_model(tiny_folder), LoraConfig(target_modules=["qkv_proj"], r=2))
    model.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tiny_folder))
    return tmp_path / "adapter"


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.popitem()
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / WEIGHTS).write_bytes(b"xx"), "is damaged or cut off"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: edit(d / "adapter_config.json", r=4), "cannot be put on its base model"),
        (lambda d: edit(d / "adapter_config.json", peft_type="NEW"), "cannot be put on its base"),
        (lambda d: edit(d / "adapter_config.json", target_modules=["none"]), "cannot be put on"),
        (drop_a_weight, "Found missing adapter keys"),
        (
            lambda d: edit(d / "adapter_config.json", base_model_name_or_path=str(d)),
            "is an adapter itself; merge it first",
        ),
    ],
)
def test_faulty_adapter_is_refused(
    adapter: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(adapter)
    with pytest.raises(ValueError, match=message):
        load_model(adapter)


def test_adapter_without_weights_is_named(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="holds no adapter weights"):
        load_model(adapter)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}'])
def test_index_without_its_map_is_named(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="has no weight_map"):
        load_model(folder)


def test_empty_weight_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 1}, "holds 6 weights that its config.json does not describe"),
        ({"num_hidden_layers": 3}, "lacks 6 of the model's weights"),
        ({"intermediate_size": 64}, "other shapes than its config.json"),
    ],
)
def test_config_of_other_weights_is_refused(
    folder: Path, fields: dict[str, int], message: str
) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_damaged_processor_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{broken")
    with pytest.raises(ValueError, match=f"{name} cannot be read as JSON"):
        load_processor(folder)
