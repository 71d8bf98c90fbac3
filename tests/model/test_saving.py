"""What a saved folder says to programs that know only the published form."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3v import load_model, load_processor
from phi3v.model.saving import carry_code_files, save_checkpoint

REPOSITORIES = {
    "p3": "microsoft/Phi-3-vision-128k-instruct--",
    "p35": "microsoft/Phi-3.5-vision-instruct--",
}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def auto_maps(folder: Path) -> dict[str, dict[str, Any]]:
    contents = {file.name: read(file) for file in folder.glob("*.json")}
    return {name: fields["auto_map"] for name, fields in contents.items() if "auto_map" in fields}


@pytest.mark.parametrize("checkpoint", ["p3", "p35"])
def test_code_that_is_absent_is_named_in_the_repository_of_the_model(
    published_folders: Path, tmp_path: Path, checkpoint: str
) -> None:
    folder = Path(shutil.copytree(published_folders / checkpoint, tmp_path / checkpoint))
    before = auto_maps(folder)
    carry_code_files(None, folder)
    expected = {
        name: {key: REPOSITORIES[checkpoint] + target for key, target in auto_map.items()}
        for name, auto_map in before.items()
    }
    assert auto_maps(folder) == expected
    assert "config.json" in expected and "preprocessor_config.json" in expected
    assert ("tokenizer_config.json" in expected) == (checkpoint == "p35")


@pytest.mark.parametrize("checkpoint", ["p3", "p35"])
def test_code_that_is_present_leaves_every_file_alone(
    published_folders: Path, tmp_path: Path, checkpoint: str
) -> None:
    folder = Path(shutil.copytree(published_folders / checkpoint, tmp_path / checkpoint))
    base = tmp_path / "base"
    base.mkdir()
    for target in {t for auto_map in auto_maps(folder).values() for t in auto_map.values()}:
        (base / f"{target.split('.')[0]}.py").write_text("raise RuntimeError('run')\n")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    carry_code_files(base, folder)
    code = {file.name for file in base.iterdir()}
    assert {file.name for file in folder.iterdir()} == set(before) | code
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_an_auto_map_may_hold_lists(tmp_path: Path) -> None:
    fields = {"auto_map": {"AutoTokenizer": ["tokenization_own.Slow", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    carry_code_files(None, tmp_path)
    expected = {"AutoTokenizer": [f"{REPOSITORIES['p35']}tokenization_own.Slow", None]}
    assert read(tmp_path / "tokenizer_config.json")["auto_map"] == expected


def test_a_whole_folder_is_opened_again_under_any_name(tiny_folder: Path, tmp_path: Path) -> None:
    model, processor = load_model(tiny_folder), load_processor(tiny_folder, num_crops=3)
    # The seed project looks for "lora" in the name of a folder.
    target = tmp_path / "my lora-llava model"
    save_checkpoint(model, processor, target, base=tiny_folder)
    loaded = load_model(target)
    assert type(loaded) is type(model)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert load_processor(target).image_processor.num_crops == 3
    assert {file.name for file in target.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_gathered_weights_are_written_instead_of_the_models(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_folder)
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    save_checkpoint(model, None, tmp_path, state_dict=gathered)
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in gathered.items())


def test_bfloat16_weights_stay_so(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_folder, dtype=torch.bfloat16)
    save_checkpoint(model, None, tmp_path)
    assert read(tmp_path / "config.json")["torch_dtype"] == "bfloat16"
    loaded = load_model(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_generation_settings_are_harmless_to_other_programs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_folder)
    save_checkpoint(model, None, tmp_path)
    stored = read(tmp_path / "generation_config.json")
    stored.pop("transformers_version")
    stored.pop("_from_model_config", None)
    assert stored == {
        "bos_token_id": 1,
        "eos_token_id": model.config.stop_token_ids,
        "pad_token_id": model.config.pad_token_id,
        "suppress_tokens": [model.config.image_token_id],
    }
