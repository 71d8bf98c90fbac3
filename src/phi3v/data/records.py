"""Reads data files and checks their records; nothing after this module knows the file format.

A record comes in one of two spellings, LLaVA's ``conversations`` or ``messages`` with content
parts, in a JSON array or one object per line. Both become a `Record`: checked turns whose text
still holds its media tags, each tag paired with its file (see `phi3v.data.turns`). Media are not
opened here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v.data.turns import Media, MediaKind, Turn, assign_media, check_order

__all__ = ["Media", "Record", "Turn", "describe_record", "parse_record", "read_records"]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Record:
    """One checked conversation: an optional system turn, then user and assistant in turn.

    Attributes:
        id: The record's own id, or its index as text.
        turns: At least one user and one assistant turn; the last is the assistant's.
        where: Name of the data file and 0-based index in it.
    """

    id: str
    turns: tuple[Turn, ...]
    where: tuple[str, int]

    @property
    def name(self) -> str:
        """How messages name this record: "record 'a17' (index 16 of data.json)"."""
        return describe_record(self.id, self.where[1], self.where[0])


def describe_record(record_id: object, index: int, file: str) -> str:
    """Name a record in a message by its id, its 0-based index and its file."""
    return f"record {str(record_id)!r} (index {index} of {file})"


def read_records(path: str | Path) -> Sequence[Any]:
    """Read the raw records of a JSON array or of a file with one JSON object per line.

    The two are told apart by the first character that is not a space.

    Args:
        path: The data file.

    Returns:
        The parsed JSON values in file order, not yet checked; see `parse_record`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, not UTF-8 or not JSON; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"data file {path} does not exist; give the path of a JSON or JSONL file"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    start = text.lstrip()[:1]
    if not start:
        raise ValueError(
            f"{path}: the file is empty; expected a JSON array of records or one record per line"
        )
    if start == "[":
        records = _load_json(text, path, 1)
    elif start == "{":
        lines = enumerate(text.split("\n"), start=1)
        records = [_load_json(line, path, number) for number, line in lines if line.strip()]
    else:
        raise ValueError(
            f"{path}: starts with {start!r}; expected '[' (a JSON array of records) or '{{' "
            "(one record per line)"
        )
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records


def _load_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise ValueError(
            f"{path}: malformed JSON at {place}: {error.msg}; repair it, or write one JSON array, "
            "or one whole object per line"
        ) from None
    except RecursionError:
        raise ValueError(
            f"{path}: JSON from line {line} on is nested too deeply to be a record"
        ) from None


def parse_record(raw: Any, index: int, file: str | Path = "data") -> Record:
    """Check one raw record and bring it into the one form that everything else works on.

    Args:
        raw: A JSON value: an object with ``conversations`` (LLaVA) or ``messages`` (role and
            content), and ``image`` / ``video`` (a path or a list of paths) where the text has tags.
        index: 0-based place in the file.
        file: The data file, for messages.

    Returns:
        The checked record; `raw` is left as it is.

    Raises:
        ValueError: If anything is wrong; the message names the record, what was found and what
            to do.
    """
    file = Path(file).name
    record_id = raw.get("id") if isinstance(raw, Mapping) else None
    record_id = index if record_id is None else record_id
    try:
        turns = _parse_turns(raw)
    except ValueError as error:
        raise ValueError(f"{describe_record(record_id, index, file)}: {error}") from None
    return Record(str(record_id), turns, (file, index))


def _parse_turns(raw: Any) -> tuple[Turn, ...]:
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"is {_kind_of(raw)}; expected an object with 'conversations' or 'messages'"
        )
    keys = [key for key in ("conversations", "messages") if raw.get(key) is not None]
    if len(keys) != 1:
        found = "both" if keys else "neither"
        raise ValueError(f"has {found} of 'conversations' and 'messages'; write exactly one")
    entries = raw[keys[0]]
    if not isinstance(entries, list):
        raise ValueError(f"'{keys[0]}' is {_kind_of(entries)}; expected a list of turns")
    if not entries:
        raise ValueError(f"'{keys[0]}' is empty; write at least one question and its answer")
    media = [*_listed_media(raw, "image"), *_listed_media(raw, "video")]
    names = ("from", "value") if keys[0] == "conversations" else ("role", "content")
    spoken = []
    part_media: list[Media] = []
    for number, entry in enumerate(entries, start=1):
        spoken.append(_parse_entry(entry, number, names, part_media))
    if media and part_media:
        raise ValueError(
            "has media in content parts and in 'image' or 'video' too; write them in one place"
        )
    check_order([role for role, _ in spoken])
    return assign_media(spoken, media or part_media)


def _parse_entry(
    entry: Any, number: int, names: tuple[str, str], part_media: list[Media]
) -> tuple[str, str]:
    """Read role and text of one turn; media of content parts are added to `part_media`."""
    role_key, text_key = names
    if not isinstance(entry, Mapping) or not all(key in entry for key in names):
        raise ValueError(
            f"turn {number} is {_kind_of(entry)}; expected an object with '{role_key}' and "
            f"'{text_key}'"
        )
    role, text = entry[role_key], entry[text_key]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f"turn {number}: unknown role {role!r}; expected one of {', '.join(ROLES)}"
        )
    if isinstance(text, list) and text_key == "content":
        text = "".join(_flatten_part(part, number, part_media) for part in text)
    if not isinstance(text, str):
        raise ValueError(f"turn {number}: '{text_key}' is {_kind_of(text)}; expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"turn {number} holds half of a surrogate pair (\\ud800 to \\udfff); "
            "write the whole character"
        ) from None
    if ROLES[role] == "assistant" and not text.strip():
        raise ValueError(
            f"turn {number}: the answer is empty; write it, or remove it with its question"
        )
    return ROLES[role], text


def _flatten_part(part: Any, number: int, part_media: list[Media]) -> str:
    """Write one content part as text with a tag, as the chat template of the processor does."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    value = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if kind == "text" and isinstance(value, str):
        return value
    if kind in ("image", "image_url", "video") and isinstance(value, str) and value:
        media_kind: MediaKind = "video" if kind == "video" else "image"
        part_media.append(Media(media_kind, value))
        return f"<{media_kind}>\n"
    found = f"of type {kind!r}" if kind is not None else _kind_of(part)
    raise ValueError(
        f"turn {number}: a content part is {found}; expected type 'text', 'image', 'image_url' or "
        "'video' with a text or a file path under the key of that name"
    )


def _listed_media(raw: Mapping[str, Any], kind: MediaKind) -> list[Media]:
    value = raw.get(kind)
    paths = [] if value is None else value if isinstance(value, list) else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            found = "an empty path" if path == "" else _kind_of(path)
            raise ValueError(f"'{kind}' holds {found}; expected a path or a list of paths")
    return [Media(kind, path) for path in paths]


def _kind_of(value: Any) -> str:
    """Name the type of a JSON value in plain words."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), type(value).__name__)
