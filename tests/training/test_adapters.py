"""Which modules get adapters, and that these learn."""

import json
from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from tests.training.conftest import Run, check_table

pytestmark = pytest.mark.slow


def test_dora_trains_magnitudes(start: Callable[..., Run]) -> None:
    changed = start("--lora_enable", "--use_dora").changed()
    assert any("lora_magnitude_vector" in name for name in changed)
    assert not any(
        "lora_magnitude_vector" in name for name in start("--lora_enable", folder="b").changed()
    )


@pytest.mark.parametrize("checkpointing", ["True", "False"])
def test_vision_adapters_learn_without_one_on_the_positions(
    start: Callable[..., Run], checkpointing: str
) -> None:
    run = start(
        *("--lora_enable", "--vision_lora", "--freeze_vision_tower"),
        *("--gradient_checkpointing", checkpointing),
    )
    assert not [
        name for name, _ in run.model.named_parameters() if "position_embedding.lora" in name
    ]
    adapters = {
        name
        for name, _ in run.model.named_parameters()
        if "vision_model" in name and "lora_" in name
    }
    assert len(adapters) == 2 * 6 * 2  # A and B of six linear layers in the two layers that run
    assert adapters <= run.changed()


@pytest.mark.parametrize("bits", ["4", "8"])
def test_head_and_vision_side_are_never_quantised(start: Callable[..., Run], bits: str) -> None:
    run = start("--lora_enable", "--bits", bits)
    quantised = {
        name
        for name, module in run.model.named_modules()
        if type(module) in (Linear4bit, Linear8bitLt)
    }
    assert len(quantised) == 2 * 4  # the four linear layers of both decoder layers
    assert not [name for name in quantised if "lm_head" in name or "vision" in name]


def test_adapter_on_the_token_table_learns_from_image_samples(
    start: Callable[..., Run], data_folder, tmp_path
) -> None:
    records = json.loads((data_folder / "data.json").read_text())
    pictures = tmp_path / "pictures.json"
    pictures.write_text(json.dumps([record for record in records if "image" in record]))
    changed = start("--lora_enable", "--data_path", str(pictures)).changed()
    assert any("embed_tokens.lora_embedding_B" in name for name in changed)


def test_token_table_and_head_are_adapted_together_or_not_at_all(start: Callable[..., Run]) -> None:
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ValueError, match="would drift apart"):
            start("--lora_enable", "--lora_namespan_exclude", f"['{name}']")


def test_the_last_modules_are_adapted(start: Callable[..., Run]) -> None:
    run = start(
        *("--lora_enable", "--num_lora_modules", "3"),
        *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']"),
    )
    adapted = {
        name.split(".lora_")[0] for name, _ in run.model.named_parameters() if "lora_" in name
    }
    assert {name.split("layers.")[1] for name in adapted} == {
        "1.self_attn.o_proj",
        "1.mlp.gate_up_proj",
        "1.mlp.down_proj",
    }


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_train_in_adapted_parts_only(start: Callable[..., Run], bias: str) -> None:
    run = start(
        *("--lora_enable", "--vision_lora", "--freeze_vision_tower", "--lora_bias", bias),
    )
    check_table(run)
    biases = [name for name in run.changed() if name.endswith("bias")]
    assert [name for name in biases if "vision_model" in name]
    assert not [name for name in biases if "encoder.layers.2." in name]


def test_a_run_starts_from_the_weights_of_an_adapter(start: Callable[..., Run]) -> None:
    first = start("--lora_enable", folder="first")
    second = start("--lora_enable", "--lora_weight_path", str(first.folder), folder="second")
    adapted = {n: p for n, p in first.model.named_parameters() if "lora_" in n}
    for name, parameter in adapted.items():
        assert torch.equal(second.before[name], parameter), name
    with pytest.raises(ValueError, match="does not fit the flags"):
        start(
            *("--lora_enable", "--vision_lora", "--freeze_vision_tower"),
            *("--lora_weight_path", str(first.folder)),
            folder="third",
        )


@pytest.mark.parametrize(
    "more",
    [
        ["--freeze_vision_tower", "--tune_img_projector", "False"],
        ["--lora_rank", "8"],
    ],
    ids=["trained vision side without a place", "another rank"],
)
def test_adapter_that_does_not_fit_is_refused(start: Callable[..., Run], more: list[str]) -> None:
    first = start("--lora_enable", folder="first")
    with pytest.raises(ValueError, match="does not fit the flags"):
        start("--lora_enable", "--lora_weight_path", str(first.folder), *more, folder="second")
