"""Opening and writing checkpoint folders; every fault of a folder is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from phi3v import (
    Phi3VConfig,
    Phi3VForCausalLM,
    Phi3VImageProcessor,
    Phi3VProcessor,
    load_model,
    load_processor,
)
from phi3v.model.saving import save_checkpoint
from phi3v.model.tiny import main as init_tiny
from phi3v.model.tiny import write_tiny_checkpoint


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for load in (load_model, load_processor):
        with pytest.raises(FileNotFoundError, match="no checkpoint folder at .*gone"):
            load(tmp_path / "gone")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_model(tmp_path)


def test_a_config_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as JSON"):
        load_model(folder)


def test_the_config_of_another_model_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="llama")
    with pytest.raises(ValueError, match="model of type 'llama', expected 'phi3_v'"):
        load_model(folder)


def test_a_truncated_weight_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_model(folder)


def test_a_missing_shard_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    load_model(tiny_folder).save_pretrained(tmp_path, max_shard_size="500KB")
    (tmp_path / sorted(tmp_path.glob("model-*"))[1].name).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-.* is missing"):
        load_model(tmp_path)


def test_weights_that_lack_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 .*'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_model(folder)


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_model(folder)


def test_an_adapter_whose_base_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(FileNotFoundError, match="no checkpoint folder at .*gone"):
        load_model(tmp_path)
    edit(tmp_path / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        load_model(tmp_path)


def test_the_second_name_of_the_token_table_is_taken(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    expected = weights["model.embed_tokens.weight"]
    weights["model.vision_embed_tokens.wte.weight"] = expected.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_model(folder).model.embed_tokens.weight, expected)


@pytest.mark.parametrize("shard_size", ["5GB", "300KB"])
def test_saved_and_loaded_weights_are_the_same(
    tiny_folder: Path, tmp_path: Path, shard_size: str
) -> None:
    model = load_model(tiny_folder)
    model.save_pretrained(tmp_path / "any name", max_shard_size=shard_size)
    loaded = load_model(tmp_path / "any name").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    assert (len(list((tmp_path / "any name").glob("*.safetensors"))) > 1) == (shard_size != "5GB")


def test_a_save_has_the_published_fields(golden: Path, tmp_path: Path) -> None:
    for checkpoint in ("p3", "p35"):
        source = golden / "checkpoints" / checkpoint
        save_checkpoint(load_model(source), None, tmp_path / checkpoint)
        before = json.loads((source / "config.json").read_text())
        after = json.loads((tmp_path / checkpoint / "config.json").read_text())
        for name in ("_attn_implementation", "_name_or_path", "transformers_version", "auto_map"):
            before.pop(name), after.pop(name, None)
        assert {name: after[name] for name in before} == before
        assert "rope_parameters" not in after
        assert "dtype" not in after


def test_code_files_are_carried_and_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_phi3_v.py").write_text("raise RuntimeError('run')\n")
    edit(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
    )
    save_checkpoint(load_model(folder), load_processor(folder), tmp_path / "out", base=folder)
    auto_map = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert (tmp_path / "out" / "modeling_phi3_v.py").is_file()
    assert auto_map["AutoModelForCausalLM"] == "modeling_phi3_v.Phi3VForCausalLM"
    assert auto_map["AutoConfig"].startswith("microsoft/Phi-3.5-vision-instruct--")


@pytest.mark.parametrize("checkpoint", ["p3", "p35"])
@pytest.mark.parametrize("auto", [False, True])
def test_answers_of_a_published_folder_end_at_end_and_at_end_of_text(
    golden: Path, checkpoint: str, auto: bool
) -> None:
    # One folder has no generation_config.json, that of the other names a token never written.
    load = AutoModelForCausalLM.from_pretrained if auto else load_model
    settings = load(golden / "checkpoints" / checkpoint).generation_config
    assert settings.eos_token_id == [32007, 32000]
    assert settings.pad_token_id == 32000
    assert settings.suppress_tokens == [32044]


def test_the_caller_chooses_attention_not_the_file(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="flash_attention_2")
    for load in (load_model, Phi3VForCausalLM.from_pretrained):
        model = load(folder, attn_implementation="sdpa")
        assert model.config._attn_implementation == "sdpa"
    assert load_model(folder).config._attn_implementation == "sdpa"


def test_auto_classes_open_a_folder(tiny_folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(tiny_folder), Phi3VConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tiny_folder), Phi3VForCausalLM)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tiny_folder), Phi3VForCausalLM)
    assert isinstance(AutoProcessor.from_pretrained(tiny_folder), Phi3VProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(tiny_folder), Phi3VImageProcessor)


def test_a_tiny_checkpoint_is_written_by_the_command(tmp_path: Path) -> None:
    assert init_tiny([str(tmp_path / "tiny"), "--crop_size", "56", "--hidden_size", "32"]) == 0
    first = load_model(tmp_path / "tiny")
    assert first.config.crop_size == 56
    with pytest.raises(FileExistsError, match="not empty"):
        init_tiny([str(tmp_path / "tiny")])
    again = write_tiny_checkpoint(tmp_path / "again", crop_size=56, hidden_size=32)
    for name, value in load_model(again).state_dict().items():
        assert torch.equal(value, first.state_dict()[name])
