"""The index of a data file: where every entry begins, kept beside the file.

A file is scanned once, by one process, and never held in memory: every process maps the same index
and reads single entries from the data file. The index belongs to one state of the data file (size,
time of change, content of head and tail) and carries checksums; what does not fit is built anew.

Layout, little-endian: header, entries of 16 bytes, a checksum for every block of entries, the
numbers of the malformed entries.
"""

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from phi3v.data.beside import hidden_places
from phi3v.data.locking import locked
from phi3v.data.scanning import Entry

logger = logging.getLogger(__name__)

_MAGIC = b"phi3vix1"
_HEADER = struct.Struct("<8sQq32sBQQII")  # the fields of `_Header`, then the header's checksum
_ENTRY = np.dtype([("start", "<u8"), ("size", "<u4"), ("line", "<u4")])
_FIELDS = struct.Struct("<QII")  # of an entry, too
_BLOCK = 1024
_END_BYTES = 1 << 16

# Whether a file is a JSON array, and its entries in batches.
Scan: TypeAlias = Callable[[BinaryIO], tuple[bool, Iterator[list[Entry]]]]


@dataclass(frozen=True)
class FileKey:
    """What tells one state of a data file from another."""

    size: int
    mtime_ns: int
    digest: bytes

    @classmethod
    def of(cls, path: Path) -> "FileKey":
        """Read the key of a file: two short reads, however large it is."""
        with path.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            ends = file.read(_END_BYTES)
            file.seek(max(0, stat.st_size - _END_BYTES))
            ends += file.read(_END_BYTES)
        return cls(stat.st_size, stat.st_mtime_ns, hashlib.blake2b(ends, digest_size=32).digest())


class DamagedIndex(Exception):
    """An index file that is torn, altered or of another state of the data file."""


class Index:
    """An opened index.

    Attributes:
        is_array: Whether the file is a JSON array; otherwise it has one entry per line.
        malformed: Ascending numbers of the entries that are not JSON.
    """

    def __init__(self, path: Path, key: FileKey) -> None:
        try:
            with path.open("rb") as file:
                self._read_header(file, key)
        except OSError as error:
            raise DamagedIndex(f"{path}: {error}") from error
        self._path = path
        self._checked = bytearray(len(self._sums))
        # Plain bytes: taking an entry off an array costs as much as parsing a record.
        size = self._count * _ENTRY.itemsize
        mapped = np.memmap(path, np.uint8, "r", _HEADER.size, size) if size else b""
        self._entries = memoryview(mapped)  # type: ignore[arg-type]  # arrays are buffers

    def _read_header(self, file: BinaryIO, key: FileKey) -> None:
        raw = file.read(_HEADER.size)
        if len(raw) != _HEADER.size or _HEADER.unpack(raw)[-1] != zlib.crc32(raw[:-4]):
            raise DamagedIndex("the header does not fit its checksum")
        magic, size, mtime_ns, digest, is_array, count, num_malformed, tail_sum, _ = _HEADER.unpack(
            raw
        )
        if magic != _MAGIC or FileKey(size, mtime_ns, digest) != key:
            raise DamagedIndex("of another file or version")
        file.seek(_HEADER.size + count * _ENTRY.itemsize)
        num_blocks = -(-count // _BLOCK)
        tail = file.read()
        if len(tail) != 4 * num_blocks + 8 * num_malformed or zlib.crc32(tail) != tail_sum:
            raise DamagedIndex("the end does not fit its checksum")
        self.is_array, self._count = bool(is_array), count
        self._sums = np.frombuffer(tail, "<u4", num_blocks)
        self.malformed = np.frombuffer(tail, "<u8", num_malformed, 4 * num_blocks)

    def __len__(self) -> int:
        return self._count

    def discard(self) -> None:
        """Remove the file, so that it is built anew."""
        self._path.unlink(missing_ok=True)

    def entry(self, number: int) -> tuple[int, int, int]:
        """Give start, end and line (0 in an array) of an entry.

        Raises:
            DamagedIndex: If the block does not fit its checksum.
        """
        block = number // _BLOCK
        if not self._checked[block]:
            size = _BLOCK * _ENTRY.itemsize
            if zlib.crc32(self._entries[block * size : (block + 1) * size]) != self._sums[block]:
                raise DamagedIndex(f"{self._path}: block {block} does not fit its checksum")
            self._checked[block] = 1
        start, size, line = _FIELDS.unpack_from(self._entries, number * _ENTRY.itemsize)
        return start, start + size, line


def open_index(path: Path, key: FileKey, scan: Scan) -> Index:
    """Open the index of a data file; build it first if there is none that fits.

    Of several processes that ask at once, one builds and the others wait for it.

    Args:
        path: The data file.
        key: Its present state.
        scan: Finds its entries.

    Raises:
        ValueError: If the file is of another kind; comes from `scan`.
    """
    places = hidden_places(path, "index")
    for place in places:
        try:
            return Index(place, key)
        except DamagedIndex:
            continue
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place.with_name(f"{place.name}.lock")):
                try:
                    return Index(place, key)
                except DamagedIndex:
                    _build(path, key, place, scan)
                if place != places[0]:
                    logger.warning("%s: its folder refuses the index; it is in %s", path, place)
                return Index(place, key)
        except OSError as error:
            refused = error
    logger.warning(
        "%s: its index can be written nowhere (%s), so every process builds its own in memory; set "
        "XDG_CACHE_HOME to a folder that can be written to",
        path,
        refused,
    )
    return _build_in_memory(path, key, scan)


def _build(path: Path, key: FileKey, place: Path, scan: Scan) -> None:
    """Write an index: aside, synced, then renamed."""
    aside = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        with aside.open("wb") as target:
            _write(target, path, key, scan)
            target.flush()
            os.fsync(target.fileno())
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _build_in_memory(path: Path, key: FileKey, scan: Scan) -> Index:
    descriptor = os.memfd_create("phi3v-index")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as target:
            _write(target, path, key, scan)
        return Index(Path(f"/proc/self/fd/{descriptor}"), key)
    finally:
        os.close(descriptor)  # the map stays


def _write(target: BinaryIO, path: Path, key: FileKey, scan: Scan) -> None:
    """Scan a data file and write its index."""
    with path.open("rb", buffering=0) as source:
        is_array, batches = scan(source)
        target.write(bytes(_HEADER.size))
        count, sums, malformed = _write_entries(target, batches)
    tail = np.array(sums, "<u4").tobytes() + np.array(malformed, "<u8").tobytes()
    target.write(tail)
    fields = (key.size, key.mtime_ns, key.digest, is_array, count, len(malformed))
    header = _HEADER.pack(_MAGIC, *fields, zlib.crc32(tail), 0)[:-4]
    target.seek(0)
    target.write(header + struct.pack("<I", zlib.crc32(header)))


def _write_entries(
    target: BinaryIO, batches: Iterator[list[Entry]]
) -> tuple[int, list[int], list[int]]:
    """Write all entries; returns their number, a checksum for each block, and the malformed."""
    count = 0
    sums: list[int] = []
    malformed: list[int] = []
    waiting: list[tuple[int, int, int]] = []

    def write_block() -> None:
        raw = np.array(waiting[:_BLOCK], _ENTRY).tobytes()
        sums.append(zlib.crc32(raw))
        target.write(raw)
        del waiting[:_BLOCK]

    for batch in batches:
        for start, end, line, valid in batch:
            if not valid:
                malformed.append(count)
            count += 1
            waiting.append((start, min(end - start, 2**32 - 1), min(line, 2**32 - 1)))
        while len(waiting) >= _BLOCK:
            write_block()
    if waiting:
        write_block()
    return count, sums, malformed
