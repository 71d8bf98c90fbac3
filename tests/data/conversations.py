"""Conversations of every kind, and the way to their examples."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3v.data.encoding import Example, encode_record
from phi3v.data.records import Place, Record, parse_record
from phi3v.model.processing import Phi3VProcessor

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one_turn": {"turns": ["What?", "That."]},
    "many_turns": {"turns": ["A?", "B.", "C?", "D.\nE.", "F?", "G"]},
    "system": {"system": "Be brief.", "turns": ["What?", "That.", "Who?", "Me."]},
    "image": {"turns": ["<image>\nWhat?", "A bus."], "image": "wide.png"},
    "image_behind_text": {"turns": ["Look: <image>", "A bus."], "image": "tall.png"},
    "image_before_text": {"turns": ["<image>What?", "A bus."], "image": "tall.png"},
    "two_images": {
        "turns": ["<image>\n<image>\nSame?", "No."],
        "image": ["wide.png", "square.png"],
    },
    "published_tags": {
        "turns": ["<|image_1|><|image_2|>Same?", "No."],
        "image": ["wide.png", "square.png"],
    },
    "image_in_later_turn": {
        "system": "Be brief.",
        "turns": ["Hello", "Hi.", "<image>\nWhat?", "A bus.", "And <image>?", "A cat."],
        "image": ["wide.png", "square.png"],
    },
    "video": {"turns": ["<video>\nWhat happens?", "A man walks."], "video": "clip.mkv"},
    "video_and_image": {
        "turns": ["<video>\n<image>\nIs it in?", "Yes.", "<video>", "Again."],
        "image": "tall.png",
        "video": ["clip.mkv", "clip.mkv"],
    },
    "unicode": {
        "turns": ["Wie heißt das? 你好 \U0001f600", "Größe: 漢字 \U0001f468‍\U0001f469 e\u0301"]
    },
    "answer_begins_with_whitespace": {"turns": ["A?", "  \n b", "C?", "\n\nd", "E?", "\tf"]},
    "answer_ends_with_whitespace": {"turns": ["A?", "b \n", "C?", "d  "]},
    "special_tokens_in_question": {
        "turns": [
            "Is <|end|>\n<|assistant|>\n No. <s> <|endoftext|> fine?",
            "Yes.",
            "</s> ?",
            "No.",
        ]
    },
    "special_tokens_in_answer": {"turns": ["What ends it?", "It is <|end|> , <|user|>\n."]},
    "empty_question": {"turns": ["", "I see.", " ", "Still."]},
}


def record_of(turns: list[str], system: str | None = None, **media: Any) -> Record:
    entries = [] if system is None else [{"from": "system", "value": system}]
    for number, text in enumerate(turns):
        entries.append({"from": ("human", "gpt")[number % 2], "value": text})
    return parse_record({"id": "a17", "conversations": entries, **media}, Place("data.json", 16))


def encode(
    record: Record,
    processor: Phi3VProcessor,
    image_folder: Path,
    max_seq_length: int = 131072,
    max_num_frames: int = 2,
) -> Example:
    return encode_record(
        in_folder(record, image_folder), processor, max_seq_length, max_num_frames=max_num_frames
    )


def in_folder(record: Record, folder: Path) -> Record:
    """Give a record whose media lie in a folder."""
    turns = (
        replace(turn, media=tuple(replace(one, folder=folder) for one in turn.media))
        for turn in record.turns
    )
    return replace(record, turns=tuple(turns))


class Listed(list[Any]):
    """Raw records in memory, as a source."""

    def __init__(self, raw: Iterable[Any], folder: Path | None = None, file: str = "data.json"):
        super().__init__(raw)
        self.folder, self.file = folder, file

    def place(self, number: int) -> Place:
        return Place(self.file, number)

    def image_folder(self, number: int) -> Path | None:
        return self.folder

    def fingerprint(self) -> str:
        return f"{list(self)} {self.folder}"
