"""What is never computed."""

from pathlib import Path

import torch
from PIL import Image

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


def test_a_frozen_tower_keeps_nothing_for_backward(tiny_folder: Path) -> None:
    model = load_model(tiny_folder).train()
    vision = model.model.vision_embed_tokens
    vision.img_processor.requires_grad_(False)
    features: list[torch.Tensor] = []
    vision.img_processor.register_forward_hook(lambda _, __, output: features.append(output))
    model(**inputs_of(tiny_folder, "compact")).logits.sum().backward()
    assert not features[0].requires_grad
    assert vision.img_projection[0].weight.grad is not None
