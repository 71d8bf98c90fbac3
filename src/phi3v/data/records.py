"""Checks raw records; nothing after this module knows in which form they were written.

A raw record is a JSON value from a source (see `phi3v.data.sources`). In its two spellings, LLaVA's
``conversations`` or ``messages`` with content parts, it becomes a `Record`: checked turns whose
text still holds its media tags, each tag paired with its file (see `phi3v.data.turns`). Media are
not opened here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from phi3v.data.turns import Media, MediaKind, Turn, assign_media, check_order

__all__ = [
    "Media",
    "Place",
    "RawRecords",
    "Record",
    "Turn",
    "describe_record",
    "parse_record",
    "read_record",
]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Place:
    """Where a record stands: a line of a file, or an entry of it.

    Attributes:
        file: Path of the data file.
        index: 0-based number of the record in the file.
        line: 1-based line; 0 where lines mean nothing.
    """

    file: str
    index: int
    line: int = 0

    def __str__(self) -> str:
        name = Path(self.file).name
        return f"line {self.line} of {name}" if self.line else f"index {self.index} of {name}"


class RawRecords(Protocol):
    """The raw records of a source, read one by one; see `phi3v.data.sources.open_records`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any:
        """Read a record; a ValueError that names it if that fails."""

    def place(self, number: int) -> Place:
        """Tell where a record stands."""

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of a record's media; None if they have full paths."""

    def fingerprint(self) -> str:
        """Name the present state of all records and folders."""


@dataclass(frozen=True)
class Record:
    """One checked conversation: an optional system turn, then user and assistant in turn.

    Attributes:
        id: The record's own id, or its index as text.
        turns: At least one user and one assistant turn; the last is the assistant's.
        where: Where it stands.
    """

    id: str
    turns: tuple[Turn, ...]
    where: Place

    @property
    def name(self) -> str:
        """How messages name this record: "record 'a17' (index 16 of data.json)"."""
        return describe_record(self.id, self.where)


def describe_record(record_id: object, where: Place) -> str:
    """Name a record in a message by its id and its place."""
    return f"record {str(record_id)!r} ({where})"


def read_record(source: RawRecords, number: int) -> Record:
    """Read and check one record of a source.

    Raises:
        ValueError: If it is malformed or anything in it is wrong; the message names it.
    """
    return parse_record(source[number], source.place(number), source.image_folder(number))


def parse_record(raw: Any, where: Place, image_folder: str | Path | None = None) -> Record:
    """Check one raw record and bring it into the one form that everything else works on.

    Args:
        raw: A JSON value: an object with ``conversations`` (LLaVA) or ``messages`` (role and
            content), and ``image`` / ``video`` (a path or a list of paths) where the text has tags.
        where: Where it stands.
        image_folder: Folder of its media.

    Returns:
        The checked record; `raw` is left as it is.

    Raises:
        ValueError: If anything is wrong; the message names the record, what was found and what
            to do.
    """
    record_id = raw.get("id") if isinstance(raw, Mapping) else None
    record_id = where.index if record_id is None else record_id
    try:
        turns = _parse_turns(raw, image_folder)
    except ValueError as error:
        raise ValueError(f"{describe_record(record_id, where)}: {error}") from None
    return Record(str(record_id), turns, where)


def _parse_turns(raw: Any, folder: str | Path | None) -> tuple[Turn, ...]:
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
    placed = [replace(one, folder=folder) for one in media or part_media]
    return assign_media(spoken, placed)


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
