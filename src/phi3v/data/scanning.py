"""Finds where the entries of a JSON array or of a file of lines begin and end.

The file passes through in chunks, so memory does not grow with it. Every entry is parsed once and
forgotten: the index knows from the start which entries are malformed. In an array, the entries
behind a malformed one are found again where the next whole record begins.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from phi3v.data.structure import SPACE, Structure, is_json, split_scalars

CHUNK_BYTES = 1 << 20
# How far behind a fault the next record is looked for at a time.
_REGION_BYTES = 4 << 20
# Keys that tell a record from the turns and parts inside one.
_RECORD_KEYS = frozenset({"conversations", "messages", "question", "texts"})
BOM = b"\xef\xbb\xbf"

# Start, end, line (1-based, 0 where it is not counted), whether it is JSON.
Entry = tuple[int, int, int, bool]

_NEXT_RECORD = re.compile(r"[,}\]\[]\s*(?=\{)")


def scan_lines(file: BinaryIO, start: int) -> Iterator[list[Entry]]:
    """Find the lines that are not blank.

    Args:
        file: Opened for reading bytes.
        start: Offset of the first line.

    Yields:
        Entries in file order.
    """
    file.seek(start)
    parts: list[bytes] = []
    line = 1
    while chunk := file.read(CHUNK_BYTES):
        *whole, rest = chunk.split(b"\n")
        entries = []
        for text in whole:
            if parts:
                text = b"".join([*parts, text])
                parts = []
            if text.strip(SPACE):
                entries.append((start, start + len(text), line, is_json(text)))
            start += len(text) + 1
            line += 1
        parts.append(rest)
        yield entries
    last = b"".join(parts)
    if last.strip(SPACE):
        yield [(start, start + len(last), line, is_json(last))]


class ArrayScanner:
    """Walks through one JSON array.

    Args:
        file: Opened for reading bytes.
        start: Offset behind the opening bracket.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._found: list[Entry] = []
        self._restart(start)

    def __iter__(self) -> Iterator[list[Entry]]:
        """Yield entries in file order, as far as a chunk holds them whole."""
        while True:
            chunk = self._file.read(CHUNK_BYTES)
            # A chunk never ends between a backslash and what it escapes.
            if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
                chunk += self._file.read(1)
            if not chunk:
                if self._finish():
                    break
                continue
            first = self._base + len(self._buffer)
            self._buffer += chunk
            if not self._walk(first, *self._structure.feed(chunk)):
                if self._done:
                    break
                continue
            self._mend_overlong()
            keep = self._anchor - self._base
            del self._buffer[:keep]
            self._base += keep
            # The last entry may still grow, see `_emit`.
            yield self._found[:-1]
            del self._found[:-1]
        yield self._found

    @property
    def _anchor(self) -> int:
        return self._last if self._open is None else self._open

    def _restart(self, start: int) -> None:
        self._file.seek(start)
        self._base = start
        self._buffer = bytearray()
        self._structure = Structure()
        self._open: int | None = None
        self._last = start
        self._fresh = True  # no entry yet, so no comma
        self._patience = _REGION_BYTES
        self._done = False

    def _walk(self, first: int, places: list[int], depths: list[int]) -> bool:
        """Take the brackets of a chunk; False after a restart or at the end of the array."""
        for place, depth in zip(places, depths, strict=True):
            place += first
            if depth == 2:
                if not self._take_gap(place):
                    return False
                self._open = place
            elif depth == 1 and self._open is not None:
                if not self._take_entry(self._open, place + 1):
                    return False
            else:
                return self._take_end(place)
        return True

    def _take_entry(self, start: int, end: int) -> bool:
        valid = is_json(self._buffer[start - self._base : end - self._base])
        if not valid and self._mend(start, end):
            return False
        self._emit(start, end, valid)
        self._open, self._last, self._fresh = None, end, False
        self._patience = _REGION_BYTES
        return True

    def _take_gap(self, end: int, *, closing: bool = False) -> bool:
        """Take what stands between two entries: a comma, and entries that are no objects."""
        start = self._last
        text = bytes(self._buffer[start - self._base : end - self._base])
        if text.strip(SPACE) == (b"" if self._fresh or closing else b","):
            return True
        scalars = split_scalars(text, fresh=self._fresh, closing=closing)
        if scalars is not None:
            for low, high, valid in scalars:
                self._emit(start + low, start + high, valid)
        elif text.strip(SPACE + b",") and self._mend(start, end + _REGION_BYTES):
            return False
        else:
            self._emit(start, end, False)
        self._fresh = False
        return True

    def _take_end(self, place: int) -> bool:
        """Take the bracket that closes the array: only space may follow."""
        if not self._take_gap(place, closing=True):
            return False
        ends_well = self._buffer[place - self._base] == ord("]")
        self._file.seek(place + 1)
        rest = self._file.read(_REGION_BYTES)
        if not ends_well or rest.strip(SPACE):
            if self._mend(place, place + _REGION_BYTES):
                return False
            self._emit(place, self._file.seek(0, 2), False)
        self._done = True
        return False

    def _finish(self) -> bool:
        """Take the end of a file whose array was not closed; False after a restart."""
        end = self._base + len(self._buffer)
        if self._open is None and not self._take_gap(end, closing=True):
            return False
        if self._open is not None and self._mend(self._open, end):
            return False
        start = self._anchor
        if self._open is None and self._found and self._found[-1][0] >= self._last:
            start = self._found[-1][1]
        self._emit(start, end, False)
        return True

    def _mend_overlong(self) -> None:
        """Look for a record inside an entry that does not end."""
        end = self._base + len(self._buffer)
        if end - self._anchor > self._patience:
            if not self._mend(self._anchor, self._anchor + self._patience):
                self._patience *= 2

    def _mend(self, start: int, end: int) -> bool:
        """Go on where the next whole record between `start` and `end` begins, if there is one."""
        place = self._file.tell()
        self._file.seek(start)
        region = self._file.read(min(end - start, _REGION_BYTES) + _REGION_BYTES)
        text = region.decode("utf-8", "surrogateescape")
        for match in _NEXT_RECORD.finditer(text):
            if match.end() > end - start:  # characters are at most as many as bytes
                break
            if _is_record_at(text, match.end()):
                found = start + len(text[: match.end()].encode("utf-8", "surrogateescape"))
                if found >= end:
                    break
                self._emit(start, found, False)
                self._restart(found)
                return True
        self._file.seek(place)
        return False

    def _emit(self, start: int, end: int, valid: bool) -> None:
        if not valid and self._found and not self._found[-1][3] and self._found[-1][1] == start:
            start = self._found.pop()[0]  # one fault, one entry
        self._found.append((start, end, 0, valid))


def _is_record_at(text: str, place: int) -> bool:
    try:
        value: Any = json.JSONDecoder().raw_decode(text, place)[0]
    except (ValueError, RecursionError):
        return False
    return bool(_RECORD_KEYS & value.keys())
