import json
from typing import Any

import pytest

from phi3v.data.records import Place, Record, parse_record

QUESTION = {"from": "human", "value": "What?"}
ANSWER = {"from": "gpt", "value": "That."}


def parse(**raw: Any) -> Record:
    return parse_record({"id": "a17", **raw}, Place("folder/data.json", 16))


def talk(*values: str, **raw: Any) -> Record:
    roles = ["human", "gpt"] * len(values)
    turns = [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]
    return parse(conversations=turns, **raw)


def test_llava_record_becomes_checked_turns() -> None:
    record = talk("<image>\nWhat?", "That.", image="a.jpg")
    assert [(turn.role, turn.text) for turn in record.turns] == [
        ("user", "<image>\nWhat?"),
        ("assistant", "That."),
    ]
    assert [media.path for media in record.turns[0].media] == ["a.jpg"]
    assert (record.id, record.where) == ("a17", Place("folder/data.json", 16))


def test_index_is_the_id_of_a_record_without_one() -> None:
    record = parse_record({"conversations": [QUESTION, ANSWER]}, Place("data.json", 3))
    assert record.name == "record '3' (index 3 of data.json)"


def test_fault_4_system_turn_keeps_its_role_and_shifts_no_other() -> None:
    system = {"from": "system", "value": "Be brief."}
    record = parse(conversations=[system, QUESTION, ANSWER, QUESTION, ANSWER])
    roles = [turn.role for turn in record.turns]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_fault_24_a_list_of_images_is_taken_in_the_order_of_its_tags() -> None:
    record = talk("<image>\n<image>\nSame?", "No.", image=["a.jpg", "b, c.jpg"])
    assert [media.path for media in record.turns[0].media] == ["a.jpg", "b, c.jpg"]


def test_fault_21_image_in_a_later_turn_is_given_to_that_turn() -> None:
    record = talk("<image> one", "1", "and <image>", "2", image=["a.jpg", "b.jpg"])
    assert [[media.path for media in turn.media] for turn in record.turns] == [
        ["a.jpg"],
        [],
        ["b.jpg"],
        [],
    ]


def test_pictures_and_videos_are_each_taken_in_order() -> None:
    record = talk(
        "<video><image><video>", "Yes.", "<image>", "No.", image=["a", "b"], video=["v", "w"]
    )
    first = [(media.kind, media.path) for media in record.turns[0].media]
    assert first == [("video", "v"), ("image", "a"), ("video", "w")]
    assert record.turns[2].media[0].path == "b"


def test_published_tags_are_understood() -> None:
    record = talk("<|image_1|>\n<|image_2|>\nSame?", "No.", image=["a", "b"])
    assert [media.path for media in record.turns[0].media] == ["a", "b"]


@pytest.mark.parametrize("image", [None, []])
def test_no_images_may_be_said_in_words(image: Any) -> None:
    assert talk("What?", "That.", image=image).turns[0].media == ()


def test_messages_with_content_parts_give_the_same_turns_as_llava() -> None:
    parts = [
        {"type": "image", "image": "a.jpg"},
        {"type": "image_url", "image_url": {"url": "b.jpg"}},
        {"type": "video", "video": "c.mp4"},
        {"type": "text", "text": "What?"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
    ]
    turns = [{"from": "system", "value": "Be brief."}]
    turns.append({"from": "human", "value": "<image>\n<image>\n<video>\nWhat?"})
    turns.append({"from": "gpt", "value": "That."})
    llava = parse(conversations=turns, image=["a.jpg", "b.jpg"], video="c.mp4")
    assert parse(messages=messages) == llava


def test_messages_with_plain_text_take_tags_from_image() -> None:
    messages = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "That."},
    ]
    assert parse(messages=messages, image="a.jpg").turns[0].media[0].path == "a.jpg"


def test_parsing_leaves_the_raw_record_alone() -> None:
    raw = {"image": ["a"], "conversations": [{"from": "human", "value": "<image>"}, ANSWER]}
    before = json.dumps(raw)
    parse_record(raw, Place("data.json", 0))
    assert json.dumps(raw) == before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (7, "is a number; expected an object"),
        ([], "is a list; expected an object"),
        (None, "is null; expected an object"),
        ({}, "has neither of 'conversations' and 'messages'"),
        ({"conversations": [QUESTION], "messages": []}, "has both of"),
        ({"conversations": "text"}, "'conversations' is text; expected a list"),
        ({"conversations": []}, "'conversations' is empty; write at least one question"),
        ({"conversations": [QUESTION, "That."]}, "turn 2 is text; expected an object"),
        ({"conversations": [{"from": "human"}, ANSWER]}, "turn 1 is an object .* 'value'"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "unknown role 'bot'; .* human"),
        ({"conversations": [{"from": 1, "value": "a"}]}, "unknown role 1"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' is a number; expected text"),
        ({"conversations": [{"from": "human", "value": []}]}, "'value' is a list; expected text"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "surrogate pair"),
        ({"conversations": [QUESTION, {"from": "gpt", "value": " \n"}]}, "turn 2: the answer is e"),
        ({"conversations": [ANSWER, QUESTION]}, "turn 1 is the assistant's, expected the user's"),
        ({"conversations": [QUESTION, QUESTION]}, "turn 2 is the user's, expected the assistant's"),
        ({"conversations": [QUESTION, ANSWER, QUESTION]}, "the last turn is the user's"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "the last turn is the system's"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "of type 'audio'"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "a content part is text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a file path under"),
    ],
)
def test_wrong_structure_is_refused_with_what_was_found(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record(raw, Place("data.json", 0))


def test_a_system_turn_in_the_middle_is_refused() -> None:
    turns = [QUESTION, ANSWER, {"from": "system", "value": "a"}, QUESTION, ANSWER]
    with pytest.raises(ValueError, match="turn 3 is the system's, expected the user's"):
        parse(conversations=turns)


def test_an_error_names_id_index_and_file() -> None:
    with pytest.raises(ValueError, match=r"^record 'a17' \(index 16 of data.json\): has neither"):
        parse()


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        ("What?", "a", "1 image but 0 <image> tags; write one tag per image"),
        ("<image>", None, "0 images but 1 <image> tag;"),
        ("<image>", ["a", "b"], "2 images but 1 <image> tag;"),
        ("<image><image>", "a", "1 image but 2 <image> tags;"),
        ("<|image_1|>", None, "0 images but 1 <image> tag;"),
        ("<video>", "a", "1 image but 0 <image> tags;"),
        ("<image><|image_2|>", ["a", "b"], "mixes <image> with <|image_2|>"),
        ("<|image_2|><|image_1|>", ["a", "b"], "expected <|image_1|>, <|image_2|>"),
        ("<|image_1|><|image_1|>", ["a", "b"], "number them from 1 in reading order"),
        ("<|image_0|>", ["a"], "number them from 1 in reading order"),
        ("a <|image|>", None, "turn 1 holds <|image|>, which is reserved"),
        ("<image>", 5, "'image' holds a number; expected a path"),
        ("<image>", "", "'image' holds an empty path"),
        ("<image>", [None], "'image' holds null"),
    ],
)
def test_fault_21_tags_that_do_not_match_the_images_are_refused(
    text: str, image: Any, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        talk(text, "That.", image=image)
    assert message in str(error.value)


@pytest.mark.parametrize("role", ["gpt", "system"])
def test_a_tag_outside_a_user_turn_is_refused(role: str) -> None:
    turns = [QUESTION, ANSWER]
    turns[1:] = [{"from": "gpt", "value": "<image>"}] if role == "gpt" else [ANSWER]
    turns = [{"from": "system", "value": "<image>"}, *turns] if role == "system" else turns
    with pytest.raises(ValueError, match="has the tag <image>; media belong in user turns"):
        parse(conversations=turns, image="a")


def test_media_in_parts_and_in_the_record_are_refused() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "a"}]},
        {"role": "assistant", "content": "b"},
    ]
    with pytest.raises(ValueError, match="media in its turns and in 'image'"):
        parse(messages=messages, image="a")
