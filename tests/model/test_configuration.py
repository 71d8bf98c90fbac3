"""The configuration: defaults, the published form, values that no checkpoint has."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from phi3v import Phi3VConfig
from phi3v.model.loading import load_config
from phi3v.model.tiny import tiny_config

# Written by the run or by the library that saves, and not by the model.
NOT_COMPARED = ("_attn_implementation", "_name_or_path", "transformers_version")
VISION = {"embd_layer": {"embedding_cls": "image"}, "img_processor": {"name": "clip_vision_model"}}


def saved(config: Phi3VConfig, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("checkpoint", ["p3", "p35"])
def test_published_config_is_written_as_it_was_read(
    golden: Path, tmp_path: Path, checkpoint: str
) -> None:
    source = golden / "checkpoints" / checkpoint
    before = json.loads((source / "config.json").read_text())
    after = saved(load_config(source), tmp_path)
    assert load_config(tmp_path).to_diff_dict() == load_config(source).to_diff_dict()
    for name in NOT_COMPARED:
        before.pop(name, None), after.pop(name, None)
    # Defaults that Phi-3 leaves out are written.
    defaults = {"pad_token_id": 32000, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    assert after == defaults | before


def test_program_that_knows_the_published_form_finds_all_fields(
    small_tokenizer: Any, tmp_path: Path
) -> None:
    fields = saved(tiny_config(small_tokenizer), tmp_path)
    assert fields["model_type"] == "phi3_v"
    assert fields["architectures"] == ["Phi3VForCausalLM"]
    assert set(fields["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert fields["rope_scaling"]["type"] == "su"
    assert fields["rope_theta"] == 10000.0
    assert fields["torch_dtype"] == "float32"
    assert fields["embd_layer"]["hd_transform_order"] == "sub_glb"
    assert fields["img_processor"]["image_dim_out"] == 64
    assert set(fields["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
    unwanted = {"rope_parameters", "dtype", "_attn_implementation", "layer_types", "id2label"}
    assert not unwanted & set(fields)


@pytest.mark.parametrize(
    ("family", "repository"),
    [
        ("phi3", "microsoft/Phi-3-vision-128k-instruct"),
        ("phi35", "microsoft/Phi-3.5-vision-instruct"),
    ],
)
def test_code_of_each_model_is_looked_for_in_its_repository(
    small_tokenizer: Any, tmp_path: Path, family: str, repository: str
) -> None:
    fields = saved(tiny_config(small_tokenizer, family=family), tmp_path)
    assert all(target.startswith(f"{repository}--") for target in fields["auto_map"].values())


def test_absent_fields_take_the_published_defaults() -> None:
    config = Phi3VConfig(**VISION)
    assert config.num_key_value_heads == 32
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 32000, 32000)
    assert config.rope_scaling is None and config.sliding_window is None
    assert (config.crop_size, config.patch_size) == (336, 14)
    assert (config.vision.num_hidden_layers, config.num_vision_layers_used) == (24, 23)
    assert (config.image_token_id, config.stop_token_ids) == (32044, [32007, 32000])


def test_config_without_embedding_layer_describes_text_only() -> None:
    assert not Phi3VConfig().has_vision


def test_stop_ids_are_those_of_the_tokenizer(small_tokenizer: Any) -> None:
    stops = small_tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert tiny_config(small_tokenizer).stop_token_ids == stops


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "many"}, "hidden_size must be a positive whole number, found 'many'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads 5"),
        (VISION | {"img_processor": {"clip_config": "x"}}, "must be JSON objects"),
        (VISION | {"img_processor": {"clip_config": {"image_size": 100}}}, "even number of 14-pix"),
        (VISION | {"img_processor": {"clip_config": {"hidden_size": 0}}}, "clip_config: hidden"),
        (VISION | {"img_processor": {"type_feature": "cls_patch"}}, "must be 'patch'"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "must be 'sub_glb'"),
        ({"embd_layer": {"projection_cls": "linear"}}, "must be 'mlp'"),
        ({"rope_scaling": [1, 2]}, "found list"),
    ],
)
def test_impossible_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VConfig(**fields)


def test_wish_of_the_file_for_an_attention_kernel_is_dropped(golden: Path, tmp_path: Path) -> None:
    fields = json.loads((golden / "checkpoints" / "p3" / "config.json").read_text())
    fields["_attn_implementation"] = "flash_attention_2"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert config._attn_implementation == "sdpa"
    assert load_config(tmp_path)._attn_implementation != "flash_attention_2"


def test_auto_tokenizer_gives_the_processors_ids(tiny_folder: Path, processor: Any) -> None:
    text = "<|user|>\nHello  there<|end|>\n<|assistant|>\n"
    found = AutoTokenizer.from_pretrained(tiny_folder)(text)["input_ids"]
    assert found == processor(text)["input_ids"][0]
