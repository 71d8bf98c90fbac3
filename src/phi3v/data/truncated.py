"""Suspects files that end too early, from their first and last bytes."""

from pathlib import Path
from typing import BinaryIO

_TAIL_BYTES = 4096
# What the end of a whole file holds.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}


def looks_truncated(file: Path | bytes) -> bool:
    """Tell whether a picture or video may be cut off.

    A suspicion only: files with foreign bytes behind their end are suspected, too, so a suspect is
    to be decoded before it is refused. Formats that do not tell their end are never suspected.

    Args:
        file: A file that exists, or the content of one.
    """
    if isinstance(file, bytes):
        head, tail, size = file[:16], file[-_TAIL_BYTES:], len(file)
        return _is_cut(head, tail, size) or _boxes_end(file, size) > size
    with file.open("rb") as opened:
        head = opened.read(16)
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _TAIL_BYTES))
        return _is_cut(head, opened.read(), size) or _boxes_end(opened, size) > size


def begins_like_video(file: Path | bytes) -> bool:
    """Tell whether the first bytes are those of an MP4, Matroska or AVI file."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            file = opened.read(16)
    return file[4:8] == b"ftyp" or file[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


def _is_cut(head: bytes, tail: bytes, size: int) -> bool:
    for start, end in _ENDS.items():
        if head.startswith(start):
            return end not in tail
    if head.startswith(b"GIF8"):
        return not tail.endswith(b"\0;")
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 > size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") > size
    # TIFF may write its pixels anywhere.
    return head.startswith((b"II*\0", b"MM\0*"))


def _boxes_end(file: BinaryIO | bytes, size: int) -> int:
    """Where the last box of an MP4 or AVIF file ends by its own account; 0 for other files."""
    start, first = 0, True
    while start + 8 <= size:
        if isinstance(file, bytes):
            head = file[start : start + 16]
        else:
            file.seek(start)
            head = file.read(16)
        if first and head[4:8] != b"ftyp":
            return 0
        first = False
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file
            return size
        start += length
    return start
