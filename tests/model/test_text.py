"""Rendering of conversations, and ids of text with image tags."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from phi3v.model.text import (
    CHAT_TEMPLATE,
    encode_text,
    expand_parts,
    render_messages,
    reopen_answer,
)
from phi3v.model.tokenizer import make_small_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<|image_1|>\nWhat?"},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "  Yes.\n"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_small_tokenizer()


def test_golden_conversations(golden: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text())["cases"]
    items = next(case for case in cases if case["kind"] == "chat_template")["items"]
    for item in items:
        text, _ = render_messages(item["messages"], item["add_generation_prompt"])
        assert text == item["text"]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_text_equals_the_published_template(
    tokenizer: PreTrainedTokenizerFast, length: int, add_generation_prompt: bool
) -> None:
    text, _ = render_messages(CHAT[:length], add_generation_prompt)
    assert text == tokenizer.apply_chat_template(
        CHAT[:length],
        chat_template=CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )


def test_spans_hold_the_answers_with_their_end() -> None:
    text, answers = render_messages(CHAT)
    assert [text[start:end] for start, end in answers] == ["A dog.<|end|>", "  Yes.\n<|end|>"]


def test_last_answer_can_be_reopened() -> None:
    text, answers = render_messages(CHAT[:3])
    assert reopen_answer(text, answers).endswith("<|assistant|>\nA dog.")
    text, answers = render_messages(CHAT[:4])
    with pytest.raises(ValueError, match="no answer to continue"):
        reopen_answer(text, answers)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "conversation is empty"),
        ([{"role": "bot", "content": "x"}], "message 0 has role 'bot', .* system, user, assistant"),
        ([{"content": "x"}], "message 0 has role None"),
        ([{"role": "user"}], "message 0 has content None"),
    ],
)
def test_bad_conversations_are_refused(messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_messages(messages)


def test_images_of_parts_are_numbered_through_the_conversation() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "<|image_2|>\nAnd this?"},
        {"role": "user", "content": [{"type": "text", "text": "Or "}, {"type": "image"}]},
    ]
    turns, pictures = expand_parts(messages)
    assert [turn["content"] for turn in turns] == [
        "<|image_1|>\nWhat?",
        "A dog.",
        "<|image_2|>\nAnd this?",
        "Or <|image_3|>\n",
    ]
    assert pictures == []
    assert messages[0]["content"][0] == {"type": "image"}


def test_pictures_of_parts_are_collected_in_order() -> None:
    parts = [{"type": "image", "image": "a.png"}, {"type": "image", "path": "b.png"}]
    assert expand_parts([{"role": "user", "content": parts}])[1] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"type": "video"}], "message 0 has a part"),
        (["text"], "message 0 has a part 'text'"),
        ([{"type": "text"}], "message 0 has a part"),
        ([{"type": "image", "image": "a.png"}, {"type": "image"}], "1 of 2 images"),
    ],
)
def test_bad_parts_are_refused(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_parts([{"role": "user", "content": parts}])


def test_every_chunk_begins_with_its_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_text(tokenizer, "<|image_1|><|image_2|>", [2, 3])
    image, bos = tokenizer.convert_tokens_to_ids("<|image|>"), tokenizer.bos_token_id
    assert encoded.input_ids == [bos, image, image, bos, image, image, image, bos]


def test_text_without_images_has_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_text(tokenizer, "Hi", []).input_ids == tokenizer("Hi")["input_ids"]


def test_spans_of_images_and_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    spans = encode_text(tokenizer, "a<|image_1|>b", [2]).spans
    assert spans == [(0, 0), (0, 1), (1, 12), (1, 12), (12, 12), (12, 13)]


def test_token_that_swallows_whitespace_keeps_its_own_span(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text, answers = render_messages([{"role": "assistant", "content": "  4"}])
    encoded = encode_text(tokenizer, text, [])
    spans = dict(
        zip(tokenizer.convert_ids_to_tokens(encoded.input_ids), encoded.spans, strict=True)
    )
    assert spans["<|assistant|>"] == (0, 13)
    start, end = answers[0]
    assert start <= spans["4"][0] < spans["4"][1] <= end
    assert spans["<|end|>"][1] == end


def test_spans_hold_the_pieces_of_random_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    snippets = [
        *"ab 4é🙂\n\t",
        "▁",
        "  ",
        "<|end|>\n",
        "<|assistant|>\n ",
        "<|user|>",
        "</s> ",
        "<s>",
    ]
    for _ in range(100):
        text = "".join(rng.choices(snippets, k=rng.randint(0, 12))) + "<|image_1|>"
        text += "".join(rng.choices(snippets, k=rng.randint(0, 12)))
        encoded = encode_text(tokenizer, text, [3])
        pieces = tokenizer.convert_ids_to_tokens(encoded.input_ids)
        assert [s for s, _ in encoded.spans] == sorted(s for s, _ in encoded.spans)
        for piece, (start, end) in zip(pieces, encoded.spans, strict=True):
            source = text[start:end]
            if piece == "<|image|>":
                assert source == "<|image_1|>"
            elif piece.startswith("<0x"):
                assert int(piece[3:5], 16) in source.encode()
            elif start < end:
                assert source in (piece, piece.replace("▁", " "), piece[1:]) or piece == "▁"


@pytest.mark.parametrize(
    ("text", "num_images", "message"),
    [
        ("<|image_2|>", 1, "must count 1, 2, 3"),
        ("<|image_0|>", 1, "must count 1, 2, 3"),
        ("<|image_1|><|image_3|>", 2, "must count 1, 2, 3"),
        ("<|image_1|>", 2, r"differ in number: found image tags \[1\] for 2 image"),
        ("<|image_1|><|image_2|>", 1, "differ in number"),
        ("no tag", 1, "differ in number"),
        ("<|image_1|>", 0, "differ in number"),
        ("<|image_1|> <|image_1|>", 1, "repeated"),
        ("<|image_2|><|image_1|>", 2, "out of order.* order of appearance"),
        ("<|image|>", 1, r"reserved for image places; write <\|image_1\|>"),
    ],
)
def test_tag_faults_are_refused(
    tokenizer: PreTrainedTokenizerFast, text: str, num_images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_text(tokenizer, text, [1] * num_images)
