"""Checks raw records; nothing after this module knows in which form they were written.

A raw record is what a source gives (see `phi3v.data.sources`): a JSON value in one of several forms
(see `phi3v.data.forms`). It becomes a `Record`: checked turns whose text still holds its media
tags, each tag paired with its file (see `phi3v.data.turns`). Media are not opened here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from phi3v.data.faults import as_fault
from phi3v.data.forms import read_form
from phi3v.data.turns import Media, Turn, assign_media, check_order

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
        raw: A JSON value, see `phi3v.data.forms`; pictures and videos may be embedded as bytes.
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
        spoken, media = read_form(raw)
        check_order([role for role, _ in spoken])
        turns = assign_media(spoken, [replace(one, folder=image_folder) for one in media])
    except ValueError as error:
        message = f"{describe_record(record_id, where)}: {error}"
        raise as_fault(error).named(message) from None
    return Record(str(record_id), turns, where)
