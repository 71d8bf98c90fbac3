"""Questions of a data file: records up to their last answer, which is put aside."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi3v.data.attachments import attach, join_turns, place_tags
from phi3v.data.options import MediaOptions
from phi3v.data.paths import locate
from phi3v.data.records import Place, Record, Turn, describe_record, parse_record
from phi3v.data.sources import open_records
from phi3v.model.answers import Conversation

_PUBLISHED = MediaOptions()


@dataclass(frozen=True)
class Question:
    """One record of an input file, up to its last question.

    Attributes:
        id: The record's id as written; its index where it has none.
        name: How messages name the record.
        turns: Checked turns; the last is the user's.
        references: Right answers: the record's "reference" or "answers", else its own last turn;
            none if it has neither.
        where: Where the record stands.
    """

    id: Any
    name: str
    turns: tuple[Turn, ...]
    references: tuple[str, ...]
    where: Place


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
            last answer is put aside. Other right answers may stand under "reference" (a text or a
            list of texts) or "answers" (a list of texts, or of objects with an "answer").
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
    references = _listed_references(raw, name) if isinstance(raw, Mapping) else ()
    if not references and answered is raw:
        references = (record.turns[-1].text,)
    return Question(record_id, name, turns, references, where)


def _listed_references(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    keys = [key for key in ("reference", "answers") if raw.get(key) is not None]
    if len(keys) > 1:
        raise ValueError(f"{name}: has 'reference' and 'answers'; write one of them")
    if not keys:
        return ()
    texts: list[str] = []
    for entry in _as_list(raw[keys[0]]):
        one = entry.get("answer") if isinstance(entry, Mapping) else entry
        # A number is what it is written as.
        texts += [str(one)] if isinstance(one, str | int | float) else []
    if not texts or len(texts) < len(_as_list(raw[keys[0]])):
        raise ValueError(
            f"{name}: '{keys[0]}' is {raw[keys[0]]!r:.80}; expected a text or a list of texts"
        )
    return tuple(texts)


def question_of(record: Record) -> Question:
    """Make the question of a checked record; its last answer is the reference."""
    return Question(
        record.id, record.name, record.turns[:-1], (record.turns[-1].text,), record.where
    )


def split_turns(question: Question) -> list[Question]:
    """Make a question of every user turn, each with what was said before as its history.

    Returns:
        Questions with the ids "ID#1", "ID#2", ...; the question itself if it is the only one. The
        answers of the record are the references; the last question keeps its own.
    """
    answers = [place for place, turn in enumerate(question.turns) if turn.role == "assistant"]
    if not answers:
        return [question]
    parts = [
        replace(
            question,
            id=f"{question.id}#{number}",
            turns=question.turns[:place],
            references=(question.turns[place].text,),
        )
        for number, place in enumerate(answers, start=1)
    ]
    return [*parts, replace(question, id=f"{question.id}#{len(answers) + 1}")]


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
    path: str | Path,
    *,
    image_folder: str | Path | None = None,
    system: str | None = None,
    may_repeat_ids: bool = False,
    options: MediaOptions = _PUBLISHED,
) -> list[Question]:
    """Read and check all questions of a file, and that their media files exist.

    Args:
        path: JSON array or JSONL file.
        image_folder: Folder of the media; None takes paths as they are.
        system: System turn for records that have none.
        may_repeat_ids: Several records may have the same id.
        options: Which media may be opened.

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
        if not may_repeat_ids and (other := seen.get(str(question.id))):
            raise ValueError(f"{question.name} has the id of {other.name}; give each its own id")
        seen[str(question.id)] = question
        for media in (media for turn in question.turns for media in turn.media):
            try:
                locate(media.source, media.folder, options)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{question.name}: {error}") from None
    return questions


def open_question(
    question: Question, *, max_num_frames: int = 10, options: MediaOptions = _PUBLISHED
) -> Conversation:
    """Open the pictures and videos of a question.

    Args:
        question: What to ask.
        max_num_frames: Most frames of a video.
        options: Which media may be opened, and how.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One cannot be read; both name the record.
    """
    media = [media for turn in question.turns for media in turn.media]
    try:
        opened = [
            attach(
                one.source,
                kind=one.kind,
                image_folder=one.folder,
                max_num_frames=max_num_frames,
                options=options,
            )
            for one in media
        ]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{question.name}: {error}") from error
    return join_turns(question.turns, opened)
