import json
from pathlib import Path
from typing import Any

import pytest

from phi3v.data.questions import parse_question, read_questions, split_turns
from phi3v.data.records import Place

LLAVA = {
    "id": 7,
    "image": "wide.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A strip."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Grey."},
    ],
}
RECORDS: list[dict[str, Any]] = [
    LLAVA,
    {"id": "two", "image": ["wide.png", "tall.png"], "prompt": "Which is taller?"},
    {"id": "clip", "video": "clip.mkv", "prompt": "What happens?"},
    {"prompt": "Only words."},
    {"id": "open", "messages": [{"role": "user", "content": "Hello"}]},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_last_answer_is_put_aside() -> None:
    question = parse_question(LLAVA, Place("in.jsonl", 0))
    assert [turn.text for turn in question.turns] == ["<image>\nWhat?", "A strip.", "Which colour?"]
    assert (question.id, question.references) == (7, ("Grey.",))


def test_a_record_may_end_with_its_question() -> None:
    question = parse_question(RECORDS[4], Place("in.jsonl", 4))
    assert ([turn.text for turn in question.turns], question.references) == (["Hello"], ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reference": "yes"}, ("yes",)),
        ({"reference": ["yes", "Yes."]}, ("yes", "Yes.")),
        ({"answers": [{"answer": "yes", "answer_id": 1}, {"answer": "no"}]}, ("yes", "no")),
        ({"reference": 7}, ("7",)),
    ],
)
def test_references_may_be_listed(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    raw = {"id": "q", "prompt": "Is it?", **fields}
    assert parse_question(raw, Place("f", 0)).references == expected
    # They come before the record's own answer.
    assert parse_question({**LLAVA, **fields}, Place("f", 0)).references == expected


@pytest.mark.parametrize(
    "fields", [{"reference": []}, {"answers": [None]}, {"answers": ["a"], "reference": "a"}]
)
def test_unclear_references_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^record 'q' \(index 0 of f\): .*'answers'|'reference'"):
        parse_question({"id": "q", "prompt": "Is it?", **fields}, Place("f", 0))


def test_every_turn_becomes_a_question_with_its_history() -> None:
    first, last = split_turns(parse_question(LLAVA, Place("f", 0)))
    assert (first.id, len(first.turns), first.references) == ("7#1", 1, ("A strip.",))
    assert (last.id, len(last.turns), last.references) == ("7#2", 3, ("Grey.",))
    assert [media.path for turn in last.turns for media in turn.media] == ["wide.png"]


def test_a_single_question_is_not_split() -> None:
    question = parse_question(RECORDS[3], Place("f", 3))
    assert split_turns(question) == [question]


def test_a_prompt_gets_tags_for_its_pictures() -> None:
    assert (
        parse_question(RECORDS[1], Place("f", 1)).turns[-1].text
        == "<image>\n<image>\nWhich is taller?"
    )


def test_a_record_without_id_is_known_by_its_index() -> None:
    assert parse_question(RECORDS[3], Place("f", 3)).id == 3


def test_a_system_text_joins_records_that_have_none() -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]}
    assert (
        parse_question(RECORDS[3], Place("f", 0), system="Be brief.").turns[0].text == "Be brief."
    )
    assert parse_question(own, Place("f", 0), system="Be brief.").turns[0].text == "Own."


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": " "}, "'prompt' is ' '"),
        ({"prompt": "a", "messages": [1]}, "has 'prompt' and 'messages'"),
        ({"prompt": "<image> a"}, "has the tags <image>"),
        ({"prompt": "a", "image": [3]}, "'image' holds a number"),
        ({"id": "x"}, "neither of 'conversations' and 'messages'"),
        ([1], "is a list"),
    ],
)
def test_faulty_records_are_named(record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^record '.*' \(index 5 of in.jsonl\): .*{message}"):
        parse_question(record, Place("in.jsonl", 5))


def test_a_missing_picture_is_found_before_anything_runs(
    media_folder: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "in.jsonl", [{"id": "a", "image": "none.png", "prompt": "What?"}])
    with pytest.raises(FileNotFoundError, match=r"record 'a' .*none.png does not exist"):
        read_questions(file, image_folder=media_folder)


def test_an_id_may_stand_once(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}])
    with pytest.raises(ValueError, match=r"record '1' \(line 2 .* has the id of record '1'"):
        read_questions(file)
