"""Records of a JSON array or a file of lines, read one by one through the index."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from phi3v.data.indexed_file import IndexedFile
from phi3v.data.records import describe_record
from phi3v.data.scanning import BOM, ArrayScanner, Entry, scan_lines
from phi3v.data.structure import SPACE

_HEAD_BYTES = 1 << 16
_REPAIR = "repair it, or write one JSON array, or one whole object per line"


class JsonRecords(IndexedFile):
    """The raw entries of a JSON or JSONL file."""

    def scan(self, file: BinaryIO) -> tuple[bool, Iterator[list[Entry]]]:
        """Find the entries of the array, or the lines."""
        return scan_json(file, self.path)

    def __getitem__(self, number: int) -> Any:
        text, start, line = self._read(number)
        try:
            return json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(self._explain(number, text, start, line, error)) from None

    def _explain(self, number: int, text: bytes, start: int, line: int, error: Exception) -> str:
        """Say what is wrong with an entry, counting lines from the start of the file."""
        name = describe_record(number % len(self), self.place(number))
        if isinstance(error, UnicodeDecodeError):
            place = f"byte {start + error.start}"
            return f"{name}: not UTF-8 at {place} of {self.path}; save the file as UTF-8"
        column = 1
        if not line:
            line, column = self._line_of(start)
        if isinstance(error, RecursionError):
            return f"{name}: JSON from line {line} on is nested too deeply to be a record"
        assert isinstance(error, json.JSONDecodeError)
        reason = error.msg
        if self._index.is_array and not text.strip(SPACE + b","):
            reason = "one comma must stand between two records, and ']' behind the last"
        else:
            column = error.colno + (column - 1) * (error.lineno == 1)
            line += error.lineno - 1
        return f"{name}: malformed JSON at line {line}, column {column}: {reason}; {_REPAIR}"

    def _line_of(self, place: int) -> tuple[int, int]:
        """Count line and column (in bytes) of an offset, both from 1."""
        line, line_start, at = 1, 0, 0
        while at < place:
            chunk = os.pread(self._file.fileno(), min(1 << 20, place - at), at)
            if not chunk:
                break
            line += chunk.count(b"\n")
            if b"\n" in chunk:
                line_start = at + chunk.rindex(b"\n") + 1
            at += len(chunk)
        return line, place - line_start + 1


def scan_json(file: BinaryIO, path: Path) -> tuple[bool, Iterator[list[Entry]]]:
    """Look at the first character of a data file and scan it accordingly.

    Args:
        file: The data file, opened for reading bytes.
        path: Its path, for messages.

    Returns:
        Whether it is a JSON array, and its entries in batches.

    Raises:
        ValueError: If the file is empty or begins with another character.
    """
    start = len(BOM) if file.read(len(BOM)) == BOM else 0
    file.seek(start)
    place = start
    while chunk := file.read(_HEAD_BYTES):
        text = chunk.lstrip(SPACE)
        place += len(chunk) - len(text)
        if text:
            break
    else:
        raise ValueError(
            f"{path}: the file is empty; expected a JSON array of records or one record per line"
        )
    if text[:1] == b"[":
        return True, iter(ArrayScanner(file, place + 1))
    if text[:1] == b"{":
        return False, scan_lines(file, start)
    raise ValueError(
        f"{path}: starts with {text[:1].decode('ascii', 'backslashreplace')!r}; expected '[' (a "
        "JSON array of records), '{' (one record per line), '-' (a YAML list of sources), or a "
        "parquet or tar file"
    )
