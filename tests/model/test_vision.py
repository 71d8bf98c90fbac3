"""From pixels to image tokens: two layouts, one result; the vision side without images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM

Make = Callable[..., Phi3VForCausalLM]
TEXT = "<|image_1|>\nand <|image_2|><|image_3|>\nWhich?"


def ask(processor: Any, pictures: Any, pixel_format: str = "compact") -> dict[str, Any]:
    return dict(processor(TEXT, pictures, return_tensors="pt", pixel_format=pixel_format))


def test_compact_and_published_pixels_give_the_same_logits(
    make_model: Make, processor: Any, pictures: Any
) -> None:
    model = make_model()
    with torch.no_grad():
        compact = model(**ask(processor, pictures)).logits
        published = model(**ask(processor, pictures, "published")).logits
    assert torch.equal(compact, published)


def test_padded_crops_are_never_read(make_model: Make, processor: Any, pictures: Any) -> None:
    model, inputs = make_model(), ask(processor, pictures, "published")
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs["pixel_values"][0, 2:] = float("nan")
        assert torch.equal(model(**inputs).logits, expected)


def test_sizes_may_be_a_list_of_pairs(make_model: Make, processor: Any, pictures: Any) -> None:
    model, inputs = make_model(), ask(processor, pictures)
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs["image_sizes"] = [tuple(size) for size in inputs["image_sizes"].tolist()]
        assert torch.equal(model(**inputs).logits, expected)


def test_published_ids_of_places_give_the_same_logits(
    make_model: Make, processor: Any, pictures: Any
) -> None:
    model, inputs = make_model(), ask(processor, pictures)
    ids = inputs["input_ids"]
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs["input_ids"] = ids.masked_fill(ids == model.config.image_token_id, -2)
        kept = inputs["input_ids"].clone()
        assert torch.equal(model(**inputs).logits, expected)
    # Phi-3's own code overwrites the caller's ids.
    assert torch.equal(inputs["input_ids"], kept)


def test_link_gives_zero_gradients_and_the_same_logits(make_model: Make) -> None:
    model, ids = make_model().train(), torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = model(ids).logits
    vision = model.model.vision_embed_tokens
    assert model(ids, labels=ids).loss.backward() is None
    assert all(parameter.grad is None for parameter in vision.parameters())
    model.model.link_vision_without_images = True
    assert torch.equal(model(ids).logits, expected)
    model(ids, labels=ids).loss.backward()
    without = {name for name, p in vision.named_parameters() if p.grad is None}
    # The layer behind the features never gets one.
    assert all("encoder.layers.2." in name or "post_layernorm" in name for name in without)
    assert all(not p.grad.any() for p in vision.parameters() if p.grad is not None)


def test_gradients_reach_all_that_is_run(make_model: Make, processor: Any, pictures: Any) -> None:
    model, inputs = make_model().train(), ask(processor, pictures)
    labels = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == model.config.image_token_id, -100
    )
    model(**inputs, labels=labels).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    dead = "model.vision_embed_tokens.img_processor.vision_model."
    assert without == {
        name
        for name, _ in model.named_parameters()
        if name.startswith((f"{dead}encoder.layers.2.", f"{dead}post_layernorm"))
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("pixel_values"), "image places but no pixel_values"),
        (lambda b: b.pop("image_sizes"), "without image_sizes"),
        (lambda b: b.update(image_sizes=[(112, 112)] * 3), "ask for 3 crops"),
        (lambda b: b.update(image_sizes=b["image_sizes"][:2]), "ask for 3 crops"),
        (lambda b: b.update(image_sizes=[(112, 100)] * 3), "112-pixel crops"),
        (lambda b: b.update(input_ids=b["input_ids"][:, :60]), "was a sequence cut"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    make_model: Make, processor: Any, pictures: Any, change: Any, message: str
) -> None:
    batch = ask(processor, pictures)
    del batch["attention_mask"]
    change(batch)
    with pytest.raises(ValueError, match=message):
        make_model()(**batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(image_sizes=b["image_sizes"][:2]), "hold 3 images but image_sizes 2"),
        (lambda b: b.update(image_sizes=[(224, 224)] * 3), "needs 4 crops by its size"),
    ],
)
def test_published_pixels_of_other_sizes_are_refused(
    make_model: Make, processor: Any, pictures: Any, change: Any, message: str
) -> None:
    batch = ask(processor, pictures, "published")
    change(batch)
    with pytest.raises(ValueError, match=message):
        make_model()(**batch)


def test_rows_share_one_call_of_the_tower(make_model: Make, processor: Any, pictures: Any) -> None:
    # Images belong to rows in order; a row without images stands between.
    texts = ["<|image_1|>a", "b", "<|image_1|>\n<|image_2|>c"]
    rows = [pictures[:1], [], pictures[1:]]
    model = make_model()
    batch = processor(texts, rows, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        for index, (text, images) in enumerate(zip(texts, rows, strict=True)):
            alone = model(**processor(text, images or None, return_tensors="pt")).logits[0]
            assert_close(logits[index, : alone.shape[0]], alone, atol=1e-4, rtol=1e-4)
