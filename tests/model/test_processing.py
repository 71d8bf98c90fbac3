"""The processor against the published ids, and what it adds: batches, chats, files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phi3v.model import Phi3VProcessor

RED, WIDE = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (80, 30), "blue")
QUESTION = "<|user|>\n<|image_1|>\nWhat?<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def case(golden: Path) -> dict[str, Any]:
    cases = json.loads((golden / "cases.json").read_text())["cases"]
    return next(case for case in cases if case["kind"] == "processor")


@pytest.mark.parametrize("name", ["p3", "p35"])
def test_published_ids(
    golden: Path, published_folders: Path, case: dict[str, Any], name: str
) -> None:
    expected = load_file(golden / case["file"])
    for item in case["items"]:
        key = item["key"]
        if key in ("swapped_order", "repeated_tag"):
            continue  # refused, see below
        processor = Phi3VProcessor.from_pretrained(
            published_folders / name, num_crops=item["num_crops"]
        )
        options = {k: item[k] for k in ("padding", "truncation", "max_length") if k in item}
        inputs = processor(
            item["prompt"],
            [golden / "images" / f"{image}.png" for image in item["images"]] or None,
            padding_side=item.get("padding_side", "right"),
            return_tensors="pt",
            **options,
        )
        # Image places hold minus the image's number in the published form, one id with us.
        ids = expected[f"{key}/input_ids"]
        ids = torch.where(ids < 0, processor.image_token_id, ids)
        assert torch.equal(inputs["input_ids"], ids), key
        assert torch.equal(inputs["attention_mask"], expected[f"{key}/attention_mask"]), key
        assert ("image_sizes" in inputs) == (f"{key}/image_sizes" in expected), key
        if "image_sizes" in inputs:
            assert torch.equal(inputs["image_sizes"], expected[f"{key}/image_sizes"]), key


@pytest.mark.parametrize("key", ["swapped_order", "repeated_tag"])
def test_published_misplacements_are_refused(
    small: Phi3VProcessor, case: dict[str, Any], key: str
) -> None:
    item = next(item for item in case["items"] if item["key"] == key)
    with pytest.raises(ValueError, match="out of order|repeated"):
        small(item["prompt"], [RED] * len(item["images"]))


def test_published_errors_are_value_errors(small: Phi3VProcessor, case: dict[str, Any]) -> None:
    for item in case["error_items"]:
        images = None if item["n_images"] is None else [RED] * item["n_images"]
        with pytest.raises(ValueError, match="tag|images|rows differ"):
            small(item["prompt"], images, return_tensors="pt")


def test_conversation_of_golden_template_calls(published_folders: Path, golden: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text())["cases"]
    items = next(case for case in cases if case["kind"] == "chat_template")["items"]
    processor = Phi3VProcessor.from_pretrained(published_folders / "p3")
    for item in items:
        if "<|image" in item["text"]:
            continue  # the tokenizer alone reads a tag as text
        ids = processor.apply_chat_template(
            item["messages"], add_generation_prompt=item["add_generation_prompt"], tokenize=True
        )
        assert ids == [item["call_token_ids"]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_holds_the_rows_as_they_are_alone(small: Phi3VProcessor, side: str) -> None:
    texts = ["<|image_1|><|image_2|>", "Only text, and rather a lot of it.", QUESTION]
    images = [[RED, WIDE], None, [WIDE]]
    batch = small(texts, images, padding=True, padding_side=side, return_tensors="pt")
    pixels, sizes = [], []
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        alone = small(text, own, return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        gap = (~kept).nonzero().flatten()
        assert gap.numel() == 0 or gap[0 if side == "left" else -1] == (
            0 if side == "left" else len(kept) - 1
        )
        assert (batch["input_ids"][row][gap] == small.tokenizer.pad_token_id).all()
        if own:
            pixels.append(alone["pixel_values"])
            sizes.append(alone["image_sizes"])
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))
    assert torch.equal(batch["image_sizes"], torch.cat(sizes))


def test_number_of_places_is_what_the_image_processor_promises(small: Phi3VProcessor) -> None:
    ids = small(QUESTION, WIDE)["input_ids"][0]
    assert ids.count(small.image_token_id) == small.image_processor.num_image_tokens(80, 30)


def test_compact_pixels_come_with_the_same_ids(small: Phi3VProcessor) -> None:
    published = small(QUESTION, WIDE, return_tensors="pt")
    compact = small(QUESTION, WIDE, return_tensors="pt", pixel_format="compact")
    assert torch.equal(published["input_ids"], compact["input_ids"])
    assert compact["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize(("return_tensors", "kind"), [(None, list), ("np", np.ndarray)])
def test_other_return_types(small: Phi3VProcessor, return_tensors: str | None, kind: type) -> None:
    inputs = small(QUESTION, RED, return_tensors=return_tensors)
    assert all(type(inputs[key]) is kind for key in ("input_ids", "attention_mask", "image_sizes"))


def test_text_is_cut_but_an_image_is_not(small: Phi3VProcessor) -> None:
    text = "<|image_1|>" + " word" * 50
    whole = small(text, RED)["input_ids"][0]
    after_image = len(whole) - whole[::-1].index(small.image_token_id)
    assert small(text, RED, truncation=True, max_length=after_image + 2)["input_ids"] == [
        whole[: after_image + 2]
    ]
    for length in (after_image - 1, 1):
        with pytest.raises(ValueError, match=f"truncation to {length} tokens would cut an image"):
            small(text, RED, truncation=True, max_length=length)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["a", "b"], [RED, RED]), {}, "list of 2 lists"),
        ((["a", "b"], [[RED]]), {}, "list of 2 lists"),
        (([RED], "a"), {}, "text comes first"),
        (([],), {}, "text is an empty list"),
        (("a",), {"max_length": 4}, "max_length needs truncation"),
        (("a",), {"padding": "max_length"}, "needs max_length"),
        (("a",), {"padding": "most"}, "padding is 'most'"),
        (("a",), {"padding_side": "top"}, "padding_side is 'top'"),
        (("a",), {"return_tensors": "tf"}, "return_tensors is 'tf'"),
    ],
)
def test_bad_calls_are_refused(
    small: Phi3VProcessor, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(*arguments, **options)


def test_chat_with_pictures_equals_the_call_on_its_text(small: Phi3VProcessor) -> None:
    parts = [{"type": "image", "image": WIDE}, {"type": "text", "text": "What?"}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    assert small.apply_chat_template(chat, add_generation_prompt=True) == QUESTION
    inputs = small.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = small(QUESTION, WIDE, return_tensors="pt")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)


def test_pictures_of_a_chat_may_come_beside_it(small: Phi3VProcessor) -> None:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    ids = small.apply_chat_template(chat, tokenize=True, images=WIDE, add_generation_prompt=True)
    assert ids == small(QUESTION, WIDE)["input_ids"]


def test_list_of_chats_is_a_batch(small: Phi3VProcessor) -> None:
    chats: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": [{"type": "image", "image": RED}]}],
        [{"role": "user", "content": "Hi"}],
    ]
    assert len(small.apply_chat_template(chats)) == 2
    inputs = small.apply_chat_template(
        chats, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
    )
    assert inputs["input_ids"].shape[0] == 2 and inputs["image_sizes"].shape == (1, 2)


def test_answer_can_be_continued(small: Phi3VProcessor) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    text = small.apply_chat_template(chat, continue_final_message=True)
    assert text.endswith("<|assistant|>\nWell")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": True}, "needs tokenize=True"),
        ({"return_dict": True}, "needs tokenize=True"),
        ({"tokenize": True, "images": RED}, "both in the messages and in images"),
    ],
)
def test_bad_template_options_are_refused(
    small: Phi3VProcessor, options: dict[str, Any], message: str
) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": RED}]}]
    with pytest.raises(ValueError, match=message):
        small.apply_chat_template(chat, **options)


def test_ids_with_image_places_are_decoded(small: Phi3VProcessor) -> None:
    ids = small(QUESTION, RED)["input_ids"]
    assert small.batch_decode(ids, skip_special_tokens=True) == ["\n \nWhat? \n"]
    assert small.decode(ids[0]).count("<|image|>") == ids[0].count(small.image_token_id)


def test_names_of_model_inputs(small: Phi3VProcessor) -> None:
    names = {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    assert set(small.model_input_names) == names


def test_other_trainers_may_leave_out_the_first_bos(small: Phi3VProcessor) -> None:
    whole = small("<|user|>\nHi<|end|>\n")["input_ids"][0]
    assert small("<|user|>\nHi<|end|>\n", add_special_tokens=False)["input_ids"][0] == whole[1:]
    chat = [{"role": "user", "content": "Hi"}]
    options = {"add_special_tokens": False, "padding": True}
    assert small.apply_chat_template(chat, tokenize=True, processor_kwargs=options)[0] == whole


def test_padded_rows_are_a_multiple(small: Phi3VProcessor) -> None:
    rows = small(["Hi", "Hi there, how"], padding=True, pad_to_multiple_of=16)["input_ids"]
    assert [len(row) % 16 for row in rows] == [0, 0] and len(rows[0]) == len(rows[1])


def test_a_mask_of_answers_is_refused(small: Phi3VProcessor) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="phi3v train supervises answers only"):
        small.apply_chat_template(chat, tokenize=True, return_assistant_tokens_mask=True)


def test_vllm_finds_the_published_names(small: Phi3VProcessor) -> None:
    assert small.img_tokens[:2] == ["<|image_1|>", "<|image_2|>"]
    count = small.calc_num_image_tokens_from_image_size(width=50, height=20)
    assert count == small.image_processor.num_image_tokens(50, 20)
