"""The libraries' own ways of opening our folders: Auto classes, pipelines, accelerate, PEFT."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from tests.training.conftest import logits_of
from tests.training.test_merge import write_adapter
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

from phi3v import Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor, load_model, load_processor

pytestmark = pytest.mark.interop
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}],
    }
]


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    write_adapter(tiny_folder, folder, modules_to_save=["img_projection"])
    return folder


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_noise((200, 100), 80).convert("RGB")


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_auto_classes_open_a_folder(tiny_folder: Path, picture: Image.Image, auto: type) -> None:
    model = auto.from_pretrained(tiny_folder)
    processor = AutoProcessor.from_pretrained(tiny_folder)
    assert type(model) is Phi3VForCausalLM and type(processor) is Phi3VProcessor
    assert type(AutoImageProcessor.from_pretrained(tiny_folder)) is Phi3VImageProcessor
    expected = logits_of(load_model(tiny_folder), load_processor(tiny_folder), picture)
    assert torch.equal(logits_of(model, processor, picture), expected)


def test_pipelines_answer_as_generate_does(tiny_folder: Path, picture: Image.Image) -> None:
    # Left open, the library asks whether to run code for a video processor that there is not.
    answer = pipeline("image-text-to-text", model=str(tiny_folder), trust_remote_code=False)
    content = [{"type": "image", "image": picture}, MESSAGES[0]["content"][1]]
    # As ids: a random model writes halves of characters, which the text of the prompt swallows.
    (result,) = answer(
        text=[{"role": "user", "content": content}], max_new_tokens=8, return_tensors=True
    )
    model, processor = load_model(tiny_folder), load_processor(tiny_folder)
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    expected = model.generate(**processor(prompt, [picture], return_tensors="pt"), max_new_tokens=8)
    assert result["generated_token_ids"].tolist() == expected[0].tolist()


def test_accelerate_places_the_model(tiny_folder: Path, picture: Image.Image) -> None:
    placed = AutoModelForCausalLM.from_pretrained(tiny_folder, device_map="auto")
    processor = load_processor(tiny_folder)
    expected = logits_of(load_model(tiny_folder), processor, picture)
    assert torch.equal(logits_of(placed, processor, picture), expected)


def test_accelerate_fetches_layers_from_disk(
    tiny_folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    places = {
        "model.embed_tokens": "cpu",
        "model.vision_embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    split = AutoModelForCausalLM.from_pretrained(
        tiny_folder, device_map=places, offload_folder=str(tmp_path)
    )
    assert split.hf_device_map["model.layers.1"] == "disk"
    processor = load_processor(tiny_folder)
    expected = logits_of(load_model(tiny_folder), processor, picture)
    torch.testing.assert_close(logits_of(split, processor, picture), expected)


def test_peft_opens_an_adapter(tiny_folder: Path, adapter: Path, picture: Image.Image) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    wrapped = PeftModel.from_pretrained(base, adapter)
    processor = AutoProcessor.from_pretrained(adapter)
    expected = logits_of(load_model(adapter), load_processor(adapter), picture)
    assert torch.equal(logits_of(wrapped, processor, picture), expected)
    assert not torch.equal(
        logits_of(load_model(tiny_folder), load_processor(adapter), picture), expected
    )
