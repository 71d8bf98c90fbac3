"""What is never computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.model.counting import peak_bytes
from torch.testing import assert_close

from phi3v import load_model, load_processor


def inputs_of(folder: Path, pixel_format: str) -> dict:
    """A wide and a square picture: three crops of the eight that the published layout holds."""
    processor = load_processor(folder, num_crops=4)
    size = processor.image_processor.crop_size
    pictures = [Image.new("RGB", (2 * size, size)), Image.new("RGB", (size // 2, size // 2))]
    text = "<|user|>\n<|image_1|>\n<|image_2|>\nWhich?<|end|>\n<|assistant|>\n"
    return dict(processor(text, pictures, return_tensors="pt", pixel_format=pixel_format))


def test_only_real_crops_reach_the_tower(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    seen: list[int] = []
    tower = model.model.vision_embed_tokens.img_processor
    tower.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[0]))
    for pixel_format in ("published", "compact"):
        inputs = inputs_of(tiny_folder, pixel_format)
        with torch.no_grad():
            model(**inputs)
        crops = sum(
            int(height * width) // model.config.crop_size**2
            for height, width in inputs["image_sizes"].tolist()
        )
        # One call for all pictures: their crops, and one global view each.
        assert seen == [crops + 2]
        seen.clear()


def test_the_layer_behind_the_features_is_never_run(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    run: list[str] = []
    transformer = model.model.vision_embed_tokens.img_processor.vision_model
    for name, module in transformer.named_modules():
        module.register_forward_hook(lambda *_, name=name: run.append(name))
    with torch.no_grad():
        model(**inputs_of(tiny_folder, "compact"))
    assert "encoder.layers.1" in run
    assert "encoder.layers.2" not in run
    assert "post_layernorm" not in run


def test_the_head_sees_supervised_places_only(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, output: rows.append(output.shape[0]))
    ids = torch.randint(3, 400, (2, 30))
    labels = ids.clone()
    labels[:, :25] = -100
    model(input_ids=ids, labels=labels)
    assert rows == [10]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", ["padded", "segments"])
def test_the_last_layer_goes_on_for_labels_alone_and_all_gradients_are_the_same(
    tiny_folder: Path, kernel: str, rows: str
) -> None:
    model = load_model(tiny_folder, attn_implementation=kernel, dtype=torch.float64).train()
    ids = torch.randint(3, 400, (2, 30))
    labels = ids.where(torch.rand(2, 30) < 0.3, -100)
    inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    if rows == "segments":
        ids, labels = ids.view(1, 60), labels.view(1, 60)
        inputs = {"segments": [(20, 0, 0), (10, 0, 20), (30, 0, 20)]}
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0][..., 0].numel()))

    def run(states: bool) -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels, output_hidden_states=states, **inputs).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    found = run(False)
    # Where all states are asked for, all are made.
    assert_close(found, run(True), rtol=1e-10, atol=1e-12)
    count = int((labels[:, 1:] != -100).sum())
    assert 0 < count < 30 and seen == [60, count, 60, 60]


@pytest.mark.parametrize("count", [1, 3, 30, 40, 0])
def test_logits_of_the_last_places_are_those_of_all(tiny_folder: Path, count: int) -> None:
    model = load_model(tiny_folder).eval()
    ids = torch.randint(3, 400, (2, 30))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    seen: list[int] = []
    model.model.layers[-1].mlp.register_forward_hook(
        lambda _, given, __: seen.append(given[0][..., 0].numel())
    )
    with torch.no_grad():
        every = model(input_ids=ids, attention_mask=mask)
        found = model(input_ids=ids, attention_mask=mask, logits_to_keep=count)
    assert_close(found.logits, every.logits[:, -count:], rtol=1e-4, atol=1e-5)
    assert seen == [60, 2 * min(count or 30, 30)]
    # What is attended to later is whole.
    for one, other in zip(found.past_key_values.layers, every.past_key_values.layers, strict=True):
        assert_close(one.keys, other.keys)
        assert_close(one.values, other.values)


def test_no_layer_holds_its_input_where_no_gradient_is_wanted(make_model: Any) -> None:
    def peak(num_layers: int) -> int:
        model = make_model(num_hidden_layers=num_layers).eval()
        ids = torch.randint(3, 90, (1, 200))
        with torch.no_grad():
            return peak_bytes(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1))

    assert peak(8) == peak(3)


def test_nothing_supervised_decodes_all(tiny_folder: Path) -> None:
    model = load_model(tiny_folder).train()
    ids = torch.randint(3, 400, (1, 12))
    model(input_ids=ids, labels=torch.full_like(ids, -100)).loss.backward()
    assert all(p.grad is not None for p in model.model.layers.parameters())


def test_a_frozen_tower_keeps_nothing_for_backward(tiny_folder: Path) -> None:
    model = load_model(tiny_folder).train()
    vision = model.model.vision_embed_tokens
    vision.img_processor.requires_grad_(False)
    features: list[torch.Tensor] = []
    vision.img_processor.register_forward_hook(lambda _, __, output: features.append(output))
    model(**inputs_of(tiny_folder, "compact")).logits.sum().backward()
    assert not features[0].requires_grad
    assert vision.img_projection[0].weight.grad is not None
