"""Adapter folders and files that do not belong together; each fault is named."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.hostile.mutations import compress

from phi3v import load_model, load_processor
from phi3v.model.tiny import write_tiny_checkpoint

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
        (lambda d: edit(d / "adapter_config.json", r=1), "cannot be put on its base model"),
        (lambda d: edit(d / "adapter_config.json", r=4), "r is 4, but the largest rank .* is 2"),
        (lambda d: edit(d / "adapter_config.json", rank_pattern={"a": 10**9}), "a is 1000000000"),
        (lambda d: edit(d / "adapter_config.json", lora_alpha="8"), "lora_alpha is '8', expected"),
        (lambda d: edit(d / "adapter_config.json", peft_type="NEW"), "only LORA adapters are"),
        (lambda d: edit(d / "adapter_config.json", megatron_config={}), "megatron_config, which"),
        (lambda d: edit(d / "adapter_config.json", layer_replication=[[0, 9]]), "which is not"),
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
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="has no weight_map"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", 1, ["a"], "a\0"])
def test_an_index_names_files_beside_it_only(folder: Path, name: object) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = json.dumps({"weight_map": {"lm_head.weight": name}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="expected the name of a file beside it"):
        load_model(folder)


def test_a_link_to_weights_elsewhere_is_followed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    assert load_model(folder).config.model_type == "phi3_v"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transformers_weights": "other.safetensors"}, "transformers_weights, which is not read"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantise them while they are loaded"),
        ({"hidden_size": 32 * 10**9, "num_attention_heads": 10**9}, "impossible model"),
        ({"vocab_size": 10**12}, "other shapes than its config.json"),
        ({"num_hidden_layers": 1000}, "the files hold 2 layers"),
        ({"num_hidden_layers": 10**12}, "must be at most 1024"),
        ({"rope_theta": 10**30}, "rope_theta must be a number above 0"),
        ({"original_max_position_embeddings": 10**30}, "must be a positive whole number"),
    ],
)
def test_a_config_takes_no_memory_for_what_is_not_stored(
    folder: Path, fields: dict[str, object], message: str
) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_weights_of_whole_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["lm_head.weight"].int()}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"'lm_head\.weight' of type I32, expected one of BF16"):
        load_model(folder)


def test_a_vast_json_file_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="bytes are more than"):
        load_model(folder)


def test_deep_json_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be read as JSON"):
        load_processor(folder)


def test_empty_weight_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 1}, "holds 6 weights that its config.json does not describe"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, but the files hold 2 layers"),
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


def test_pickled_weights_are_read_and_their_faults_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    assert torch.equal(load_model(folder).lm_head.weight, weights["lm_head.weight"])
    whole = file.read_bytes()
    for content in (whole[:-5000], b"", pickle.dumps(print)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
            load_model(folder)


@pytest.mark.parametrize("bomb", ["compressed", "repeated"])
def test_a_pickle_that_grows_is_refused(folder: Path, bomb: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    shape = weights["lm_head.weight"].shape
    repeated = {"lm_head.weight": torch.zeros(1).expand(10**6, shape[1])}
    torch.save(weights | (repeated if bomb == "repeated" else {}), file)
    if bomb == "compressed":
        compress(file)
    with pytest.raises(ValueError, match="do not trust its source"):
        load_model(folder)


def test_weights_under_another_name_are_not_taken(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors, or shards"):
        load_model(folder)


def test_a_type_that_torch_does_not_know_is_named(folder: Path) -> None:
    edit(folder / "config.json", torch_dtype="float99")
    with pytest.raises(ValueError, match="torch_dtype is 'float99'"):
        load_model(folder)


def test_json_that_is_no_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="describes no tokenizer"):
        load_processor(folder)


def test_rules_that_name_absent_tokens_are_refused(folder: Path) -> None:
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["post_processor"]["special_tokens"] = {}
    edit(folder / "tokenizer.json", post_processor=rules["post_processor"])
    with pytest.raises(ValueError, match="describes no tokenizer"):
        load_processor(folder)


def test_flash_attention_without_its_package_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="flash_attention_2 needs flash-attn"):
        load_model(folder, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("num_crops", [0, 17])
def test_a_tiny_checkpoint_has_a_possible_number_of_crops(tmp_path: Path, num_crops: int) -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        write_tiny_checkpoint(tmp_path / "tiny", num_crops=num_crops)
    assert not (tmp_path / "tiny").exists()
