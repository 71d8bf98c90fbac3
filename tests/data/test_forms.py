"""Every form of record gives the same turns and media as LLaVA's."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from phi3v.data.encoding import encode_record
from phi3v.data.records import Place, Record, parse_record
from phi3v.data.sharing import share_key
from phi3v.model.processing import Phi3VProcessor


def parse(**raw: Any) -> Record:
    return parse_record({"id": "a17", **raw}, Place("data.jsonl", 16, line=17), "images")


def llava(*texts: str, **media: Any) -> Record:
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return parse(conversations=turns, **media)


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(stream, "PNG")
    return stream.getvalue()


def test_records_of_microsofts_recipe() -> None:
    pairs = [
        {"images": ["a.jpg", "b.jpg"], "user": "Same?", "assistant": "No."},
        {"images": ["c.jpg"], "user": "And this?", "assistant": "Yes."},
        {"user": "Sure?", "assistant": "Yes."},
    ]
    found = parse(source="nlvr2", conversations=pairs)
    assert found == llava(
        *("<image>\n<image>\nSame?", "No.", "<image>\nAnd this?", "Yes.", "Sure?", "Yes."),
        image=["a.jpg", "b.jpg", "c.jpg"],
    )


def test_tags_in_a_question_of_microsofts_recipe_stay_where_they_are() -> None:
    pairs = [{"images": ["a.jpg"], "user": "Look: <|image_1|>", "assistant": "A."}]
    assert parse(conversations=pairs) == llava("Look: <|image_1|>", "A.", image="a.jpg")


def test_pairs_of_texts_have_their_pictures_in_front() -> None:
    texts = [
        {"user": "What?", "assistant": "A bus.", "source": "x"},
        {"user": "Red?", "assistant": "Yes."},
    ]
    assert parse(texts=texts, images=["a.jpg"]) == llava(
        "<image>\nWhat?", "A bus.", "Red?", "Yes.", image="a.jpg"
    )


@pytest.mark.parametrize("answer", [{"answer": "A bus."}, {"answers": ["A bus.", "bus"]}])
def test_a_question_and_its_answer(answer: dict[str, Any]) -> None:
    found = parse(question="What?", image="a.jpg", **answer)
    assert found == llava("<image>\nWhat?", "A bus.", image="a.jpg")


def test_conversations_may_have_roles_and_content() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert parse(conversations=turns) == llava("Hi", "Ho")


def test_turns_stored_column_by_column() -> None:
    columns = {"from": ["human", "gpt"], "value": ["Hi", "Ho"]}
    assert parse(conversations=columns) == llava("Hi", "Ho")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.jpg"},
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "url": "a.jpg", "image": None},
        {"type": "image_url", "image_url": "a.jpg"},
        {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}},
    ],
)
def test_a_picture_in_a_content_part(part: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A bus."},
    ]
    assert parse(messages=messages) == llava("<image>\nWhat?", "A bus.", image="a.jpg")


def test_parts_without_a_path_take_the_listed_pictures_in_order() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "or "}, {"type": "image"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "B."}]
    found = parse(messages=messages, images=["a.jpg", "b.jpg"])
    assert found == llava("<image>\nor <image>\n", "B.", image=["a.jpg", "b.jpg"])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"bytes": png(), "path": "a.png"}, "a.png"),
        ({"bytes": png(), "path": None}, "embedded image"),
        (png(), "embedded image"),
        ("data:image/png;base64," + base64.b64encode(png()).decode(), "embedded image"),
    ],
)
def test_an_embedded_picture_gives_the_example_of_its_file(
    value: Any, name: str, small_processor: Phi3VProcessor, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    question = ("<image>\nWhat?", "Red.")
    from_file = parse_record(
        {"question": question[0], "answer": question[1], "image": "a.png"},
        Place("data.json", 0),
        tmp_path,
    )
    embedded = llava(*question, image=value)
    assert embedded.turns[0].media[0].path == name
    examples = [
        encode_record(record, small_processor, 1000, max_num_frames=1)
        for record in (from_file, embedded)
    ]
    assert torch.equal(examples[0]["input_ids"], examples[1]["input_ids"])
    assert torch.equal(examples[0]["pixel_values"], examples[1]["pixel_values"])


def test_a_path_beside_no_bytes_is_a_path() -> None:
    assert llava("<image>", "a", image={"bytes": None, "path": "a.jpg"}) == llava(
        "<image>", "a", image="a.jpg"
    )


def test_embedded_pictures_are_shared_by_their_content() -> None:
    keys = [
        share_key(llava("<image>\nWhat?", "a", image=png(colour)))
        for colour in ("red", "red", "blue")
    ]
    assert keys[0] == keys[1] != keys[2]
    assert len(repr(keys[0])) < 500


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"prompt": "a"}, "nor 'texts' or 'question'; write one .its keys: 'id', 'prompt'"),
        ({"conversations": [{"user": "a"}]}, "pair 1 is an object with the keys 'user'; expected"),
        ({"conversations": [{"user": 1, "assistant": "a"}]}, "pair 1: 'user' is a number"),
        ({"texts": [{"user": "a", "assistant": " "}]}, "pair 1: the answer is empty"),
        ({"texts": "a"}, "'texts' is text; expected a list of turns"),
        ({"conversations": {"from": "a"}}, "'conversations' is an object with the keys 'from'"),
        ({"question": "a"}, "'answer' is null; expected text"),
        ({"question": "a", "answer": ""}, "'answer': the answer is empty"),
        ({"question": "a", "answer": "b", "image": "c", "images": ["d"]}, "both of 'image' and"),
        ({"question": "a", "answer": "b", "image": {"x": 1}}, "'image' holds an object with"),
        (
            {"question": "a", "answer": "b", "image": "data:a"},
            "'image' holds 'data:a'; a data: add",
        ),
        (
            {"question": "a", "answer": "b", "image": "data:image/png;base64,*"},
            "a data: address that is not base64",
        ),
        (
            {
                "conversations": [{"images": ["a"], "user": "<image><image>", "assistant": "b"}],
            },
            "1 image but 2 <image> tags",
        ),
        (
            {
                "conversations": [{"images": ["a"], "user": "b", "assistant": "c"}],
                "image": "d",
            },
            "has media in its turns and in 'image'",
        ),
    ],
)
def test_a_fault_is_named_with_its_record(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^record 'a17' \(line 17 of data.jsonl\): .*{message}"):
        parse(**raw)
