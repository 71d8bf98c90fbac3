"""Reads single entries of a large file through its index, in as many processes as ask."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from phi3v.data.index import DamagedIndex, FileKey, Index, open_index
from phi3v.data.records import Place
from phi3v.data.scanning import Entry


class IndexedFile:
    """A file whose entries are read one by one.

    A copy in another process (pickled or forked) opens file and index itself when first used. Both
    are given back when nobody holds the object any more, or by `close`.

    Args:
        path: The data file.
        image_folder: Folder of its media.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of the kind that is expected, or holds no records.
    """

    # Of the process that has opened the file.
    _pid: int | None = None

    def __init__(self, path: Path, image_folder: str | Path | None = None) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"data file {path} does not exist; check the path")
        self.path = path
        self._image_folder = image_folder
        self._key = FileKey.of(path)
        self._lock = threading.Lock()
        self._open()
        if not len(self._index):
            raise ValueError(f"{path}: holds no records")

    def scan(self, file: BinaryIO) -> tuple[bool, Iterator[list[Entry]]]:
        """Find all entries; whether the file is a JSON array, and the entries in batches."""
        raise NotImplementedError

    def __getitem__(self, number: int) -> Any:
        raise NotImplementedError

    def _open(self) -> None:
        self.close()
        self._index: Index = open_index(self.path, self._key, self.scan)
        self._file: BinaryIO = self.path.open("rb", buffering=0)
        self._pid = os.getpid()
        if FileKey.of(self.path) != self._key:
            self.close()
            raise ValueError(f"{self.path} has changed since it was opened; start again")

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_index", "_file", "_pid", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        self._reopen_elsewhere()
        return len(self._index)

    def place(self, number: int) -> Place:
        """Tell where an entry stands: on a line, or at an index."""
        return Place(str(self.path), number % len(self), self._entry(number)[2])

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of an entry's media."""
        return self._image_folder

    def fingerprint(self) -> str:
        """Name the state of the file and its folder."""
        key = self._key
        return f"{key.size} {key.mtime_ns} {key.digest.hex()} {self._image_folder}"

    def close(self) -> None:
        """Give file and index back; they are opened again when they are needed."""
        self._pid = None
        vars(self).pop("_index", None)
        if (file := vars(self).pop("_file", None)) is not None:
            file.close()

    def __del__(self) -> None:
        self.close()

    def _reopen_elsewhere(self) -> None:
        # A file position and checks of blocks are not shared with the process we come from.
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._open()

    def _entry(self, number: int) -> tuple[int, int, int]:
        """Give start, end and line (0 where lines mean nothing) of an entry."""
        self._reopen_elsewhere()
        if not -len(self._index) <= number < len(self._index):
            raise IndexError(f"entry {number} of {len(self._index)} in {self.path}")
        number %= len(self._index)
        try:
            return self._index.entry(number)
        except DamagedIndex:
            self._index.discard()
            self._index = open_index(self.path, self._key, self.scan)
            return self._index.entry(number)

    def _read(self, number: int) -> tuple[bytes, int, int]:
        """Read an entry; its bytes, start and line."""
        start, end, line = self._entry(number)
        text = os.pread(self._file.fileno(), end - start, start)
        if len(text) != end - start:
            raise ValueError(f"{self.path} has changed since it was opened; start again")
        return text, start, line
