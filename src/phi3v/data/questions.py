"""Questions of a data file: records up to their last answer, which is put aside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v.data.attachments import attach, join_turns, place_tags
from phi3v.data.options import MediaOptions
from phi3v.data.paths import locate
from phi3v.data.records import Place, Turn, describe_record, parse_record
from phi3v.data.sources import open_records
from phi3v.model.answers import Conversation


@dataclass(frozen=True)
class Question:
    """One record of an input file, up to its last question.

    Attributes:
        id: The record's id as written; its index where it has none.
        name: How messages name the record.
        turns: Checked turns; the last is the user's.
        reference: The record's own answer, if it has one.
    """

    id: Any
    name: str
    turns: tuple[Turn, ...]
    reference: str | None


def parse_question(
    raw: Any,
    where: Place,
    image_folder: str | Path | None = None,
    *,
    system: str | None = None,
) -> Question:
    """Check one raw record.

    Args:
        raw: A record with "prompt" and "image" or "video", or a LLaVA or messages record, whose
            last answer is put aside.
        where: Where it stands.
        image_folder: Folder of its media.
        system: System turn for records that have none.

    Raises:
        ValueError: As `parse_record` does.
    """
    record_id = raw.get("id") if isinstance(raw, Mapping) else None
    record_id = where.index if record_id is None else record_id
    name = describe_record(record_id, where)
    answered = raw
    if isinstance(raw, Mapping):
        answered = _with_turns(raw, name)
    record = parse_record(answered, where, image_folder)
    turns = record.turns[:-1]
    if system and turns[0].role != "system":
        turns = (Turn("system", system), *turns)
    has_answer = answered is raw
    return Question(record_id, name, turns, record.turns[-1].text if has_answer else None)


def _with_turns(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Give a record that ends with a question a stand-in for its answer, to be checked as usual."""
    if "prompt" in raw:
        if other := [key for key in ("conversations", "messages") if raw.get(key) is not None]:
            raise ValueError(f"{name}: has 'prompt' and '{other[0]}'; write one of them")
        text = raw["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: 'prompt' is {text!r}; expected the text of a question")
        kinds = [kind for kind in ("image", "video") for _ in _as_list(raw.get(kind))]
        try:
            text = place_tags(text, kinds)  # type: ignore[arg-type]  # the two kinds, literally
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "-"}]
        return {**raw, "messages": turns}
    for key, role, content in (
        ("conversations", "from", "value"),
        ("messages", "role", "content"),
    ):
        entries = raw.get(key)
        if isinstance(entries, list) and entries and isinstance(entries[-1], Mapping):
            if entries[-1].get(role) in ("user", "human"):
                return {**raw, key: [*entries, {role: "assistant", content: "-"}]}
    return raw


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def read_questions(
    path: str | Path, *, image_folder: str | Path | None = None, system: str | None = None
) -> list[Question]:
    """Read and check all questions of a file, and that their media files exist.

    Args:
        path: JSON array or JSONL file.
        image_folder: Folder of the media; None takes paths as they are.
        system: System turn for records that have none.

    Raises:
        FileNotFoundError: The file or one of its media is missing.
        ValueError: A record is faulty, or two have the same id.
    """
    source = open_records(path, image_folder)
    questions = [
        parse_question(source[n], source.place(n), source.image_folder(n), system=system)
        for n in range(len(source))
    ]
    seen: dict[str, Question] = {}
    for question in questions:
        if other := seen.get(str(question.id)):
            raise ValueError(f"{question.name} has the id of {other.name}; give each its own id")
        seen[str(question.id)] = question
        for media in (media for turn in question.turns for media in turn.media):
            try:
                locate(media.source, media.folder, MediaOptions())
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{question.name}: {error}") from None
    return questions


def open_question(question: Question, *, max_num_frames: int = 10) -> Conversation:
    """Open the pictures and videos of a question.

    Args:
        question: What to ask.
        max_num_frames: Most frames of a video.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One cannot be read; both name the record.
    """
    media = [media for turn in question.turns for media in turn.media]
    try:
        opened = [
            attach(
                one.source, kind=one.kind, image_folder=one.folder, max_num_frames=max_num_frames
            )
            for one in media
        ]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{question.name}: {error}") from error
    return join_turns(question.turns, opened)
