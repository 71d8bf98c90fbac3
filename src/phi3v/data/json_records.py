"""Records of a JSON array or a file of lines, read one by one through the index."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from phi3v.data.index import DamagedIndex, FileKey, Index, open_index
from phi3v.data.records import Place, describe_record
from phi3v.data.structure import SPACE

_REPAIR = "repair it, or write one JSON array, or one whole object per line"


class JsonRecords:
    """The raw entries of a JSON or JSONL file.

    A copy in another process (pickled or forked) opens file and index itself when first used.

    Args:
        path: The data file.
        image_folder: Folder of its media.

    Attributes:
        malformed: Ascending numbers of the entries that are not JSON.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, is neither kind of file, or holds no records.
    """

    def __init__(self, path: Path, image_folder: str | Path | None = None) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"data file {path} does not exist; give the path of a JSON or JSONL file"
            )
        self.path = path
        self._image_folder = image_folder
        self._key = FileKey.of(path)
        self._lock = threading.Lock()
        self._open()
        if not len(self._index):
            raise ValueError(f"{path}: holds no records")
        self.malformed = self._index.malformed.tolist()

    def _open(self) -> None:
        self._index: Index = open_index(self.path, self._key)
        self._file = self.path.open("rb", buffering=0)
        self._pid = os.getpid()
        if FileKey.of(self.path) != self._key:
            self._file.close()
            raise ValueError(f"{self.path} has changed since it was opened; start again")

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_index", "_file", "_pid", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pid=None, _lock=threading.Lock())

    def __len__(self) -> int:
        self._reopen_elsewhere()
        return len(self._index)

    def __getitem__(self, number: int) -> Any:
        text, start, line = self._read(number)
        try:
            return json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(self._explain(number, text, start, line, error)) from None

    def place(self, number: int) -> Place:
        """Tell where an entry stands: on a line, or at an index of the array."""
        return Place(str(self.path), number % len(self), self._entry(number)[2])

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of an entry's media."""
        return self._image_folder

    def fingerprint(self) -> str:
        """Name the state of the file and its folder."""
        key = self._key
        return f"{key.size} {key.mtime_ns} {key.digest.hex()} {self._image_folder}"

    def _reopen_elsewhere(self) -> None:
        # A file position and checks of blocks are not shared with the process we come from.
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._open()

    def _entry(self, number: int) -> tuple[int, int, int]:
        self._reopen_elsewhere()
        if not -len(self._index) <= number < len(self._index):
            raise IndexError(f"entry {number} of {len(self._index)} in {self.path}")
        number %= len(self._index)
        try:
            return self._index.entry(number)
        except DamagedIndex:
            self._index.discard()
            self._index = open_index(self.path, self._key)
            return self._index.entry(number)

    def _read(self, number: int) -> tuple[bytes, int, int]:
        start, end, line = self._entry(number)
        text = os.pread(self._file.fileno(), end - start, start)
        if len(text) != end - start:
            raise ValueError(f"{self.path} has changed since it was opened; start again")
        return text, start, line

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
