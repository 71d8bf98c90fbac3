"""Questions from a data file, answers into a JSONL file."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from phi3v.data.paths import resolve_path
from phi3v.data.records import Turn, describe_record, parse_record, read_records
from phi3v.inference.answers import Conversation, answer_batch, join_turns
from phi3v.inference.attachments import attach, place_tags
from phi3v.inference.settings import GenerationSettings
from phi3v.model.processing import Phi3VProcessor


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


def parse_question(raw: Any, index: int, file: str, system: str | None = None) -> Question:
    """Check one raw record.

    Args:
        raw: A record with "prompt" and "image" or "video", or a LLaVA or messages record, whose
            last answer is put aside.
        index: 0-based place in the file.
        file: Name of the file, for messages.
        system: System turn for records that have none.

    Raises:
        ValueError: As `parse_record` does.
    """
    record_id = raw.get("id") if isinstance(raw, Mapping) else None
    record_id = index if record_id is None else record_id
    name = describe_record(record_id, index, file)
    answered = raw
    if isinstance(raw, Mapping):
        answered = _with_turns(raw, name)
    record = parse_record(answered, index, file)
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
    file = Path(path).name
    questions = [
        parse_question(raw, index, file, system) for index, raw in enumerate(read_records(path))
    ]
    seen: dict[str, Question] = {}
    for question in questions:
        if other := seen.get(str(question.id)):
            raise ValueError(f"{question.name} has the id of {other.name}; give each its own id")
        seen[str(question.id)] = question
        for media in (media for turn in question.turns for media in turn.media):
            try:
                resolve_path(media.path, image_folder)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{question.name}: {error}") from None
    return questions


def prepare_output(path: str | Path, *, resume: bool, overwrite: bool) -> set[str]:
    """Look at the output file before the work begins; nothing in it is lost yet.

    Args:
        path: JSONL file; its folder is made.
        resume: Keep the answers of an existing file. A last line that was cut off is removed.
        overwrite: An existing file may be replaced.

    Returns:
        Ids, as text, that have an answer already.

    Raises:
        FileExistsError: The file exists and neither is wanted.
        ValueError: Both are wanted, or the file to go on with is no file of answers.
    """
    path = Path(path)
    if resume and overwrite:
        raise ValueError("--resume keeps the output and --overwrite empties it; give one of them")
    if path.exists() and not (resume or overwrite):
        raise FileExistsError(
            f"{path} exists; add --resume to answer what is missing in it, or --overwrite"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if overwrite or not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    ids = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            answer = json.loads(line)
            ids.add(str(answer["id"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}: line {number} is no answer with an 'id'; name another output file"
            ) from None
    if whole != content:
        os.truncate(path, len(whole))
    return ids


def answer_questions(
    model: Any,
    processor: Phi3VProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 1,
    settings: GenerationSettings | None = None,
    image_folder: str | Path | None = None,
    max_num_frames: int = 10,
) -> Iterator[dict[str, Any]]:
    """Answer questions in batches and yield their lines of output, in order.

    Args:
        model: The model.
        processor: Its processor.
        questions: What to answer.
        batch_size: Questions that are answered together.
        settings: How to choose the answers.
        image_folder: Folder of the media.
        max_num_frames: Most frames of a video.

    Raises:
        ValueError: A picture or video cannot be read, or a prompt is too long; names the record.
    """

    def load(question: Question) -> Conversation:
        media = [media for turn in question.turns for media in turn.media]
        options: Any = {"image_folder": image_folder, "max_num_frames": max_num_frames}
        try:
            opened = [attach(one.path, kind=one.kind, **options) for one in media]
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{question.name}: {error}") from error
        return join_turns(question.turns, opened)

    with tqdm(total=len(questions), unit="question", disable=None) as progress:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            answers = answer_batch(model, processor, [load(one) for one in batch], settings)
            for question, answer in zip(batch, answers, strict=True):
                line = {"id": question.id, "prompt": question.turns[-1].text, "answer": answer}
                if question.reference is not None:
                    line["reference"] = question.reference
                yield line
            progress.update(len(batch))
