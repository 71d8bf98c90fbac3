"""Samples of a tar file in the WebDataset layout, read one by one through the index.

The members of a sample stand together and share their name up to its first dot. One of them, in
JSON, is the record; the others are its pictures and videos, which the record names by the name or
the ending of the member, or simply takes in their order.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from phi3v.data.indexed_file import IndexedFile
from phi3v.data.records import describe_record
from phi3v.data.scanning import Entry

_BLOCK = 512
IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
VIDEO_ENDINGS = frozenset({"mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg"})
_MEDIA_KEYS = ("image", "images", "image_url", "video", "videos", "video_url", "url", "path")


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a member into the key of its sample and its ending."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def scan_tar(file: Any) -> Iterator[list[Entry]]:
    """Find the samples; one that the file does not hold whole is marked as malformed.

    Args:
        file: The tar file, open; one that arrives from the web will do.
    """
    key, start, end = None, 0, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                # The archive would remember every member.
                archive.members.clear()  # type: ignore[attr-defined]  # unknown to the stubs
                name = PurePosixPath(member.name).name
                if not member.isfile() or name.startswith((".", "__")):
                    continue
                own = split_name(member.name)[0]
                if own != key:
                    if key is not None:
                        yield [(start, end, 0, True)]
                    key, start = own, member.offset
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if key is not None:
            yield [(start, min(end, file.seek(0, 2)), 0, True)]
    except tarfile.TarError:
        yield [(start, file.seek(0, 2), 0, False)]


class TarRecords(IndexedFile):
    """The samples of one tar file as raw records with embedded media."""

    def scan(self, file: BinaryIO) -> tuple[bool, Iterator[list[Entry]]]:
        """Find the samples."""
        return False, scan_tar(file)

    def __getitem__(self, number: int) -> Any:
        content = self._read(number)[0]
        try:
            return read_sample(content, self.path.name)
        except ValueError as error:
            name = describe_record(number % len(self), self.place(number))
            raise ValueError(f"{name}: {error}") from None


def read_sample(content: bytes, file: str) -> Any:
    """Make a raw record of a sample.

    Args:
        content: Its members, as they stand in the tar file.
        file: Name of the tar file, for messages.

    Raises:
        ValueError: If a member is cut off, or none is JSON.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                # A link may lead anywhere, and holes are as large as their header says.
                if not member.isreg() or member.issparse():
                    continue
                opened = archive.extractfile(member)
                if opened is not None:
                    members[member.name] = opened.read()
                    if len(members[member.name]) != member.size:
                        raise tarfile.ReadError(f"{member.name} is cut off")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file} is damaged or cut off here ({error}); fetch it again") from None
    found = [name for name in members if split_name(name)[1].rpartition(".")[2] == "json"]
    if len(found) != 1:
        listed = ", ".join(members) or "nothing"
        raise ValueError(
            f"its members are {listed}; expected one .json with the record, beside its media"
        )
    try:
        raw = json.loads(members[found[0]].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{found[0]} is not JSON ({error}); repair it") from None
    if not isinstance(raw, Mapping):
        return raw
    key = split_name(found[0])[0]
    return _embed({"id": key, **raw}, members, file)


def _embed(raw: dict[str, Any], members: Mapping[str, bytes], file: str) -> dict[str, Any]:
    """Put the media of a sample where its record names them."""
    media = {name: kind for name in members if (kind := _kind(name)) is not None}
    names: dict[str, str] = {}
    for name in media:
        names |= {split_name(name)[1]: name, PurePosixPath(name).name: name, name: name}
    used: list[str] = []

    def embedded(name: str) -> dict[str, Any]:
        used.append(name)
        return {"bytes": members[name], "path": f"{name} of {file}"}

    def fill(value: Any, *, is_media: bool) -> Any:
        if isinstance(value, Mapping):
            return {key: fill(one, is_media=key in _MEDIA_KEYS) for key, one in value.items()}
        if isinstance(value, list):
            return [fill(one, is_media=is_media) for one in value]
        if is_media and isinstance(value, str) and value in names:
            return embedded(names[value])
        return value

    filled = {
        key: fill(value, is_media=key in _MEDIA_KEYS)
        for key, value in raw.items()
        if key not in ("url", "path")
    }
    if used:
        return filled
    # The record names its files by what they were called outside, or not at all.
    for kind in ("image", "video"):
        own = [name for name in media if media[name] == kind]
        keys = [key for key in (kind, f"{kind}s") if raw.get(key) not in (None, [])]
        listed = raw[keys[0]] if keys else []
        if own and (not keys or (len(listed) if isinstance(listed, list) else 1) == len(own)):
            filled[keys[0] if keys else kind] = [embedded(name) for name in own]
    return filled


def _kind(name: str) -> str | None:
    ending = split_name(name)[1].rpartition(".")[2]
    if ending in IMAGE_ENDINGS:
        return "image"
    return "video" if ending in VIDEO_ENDINGS else None
