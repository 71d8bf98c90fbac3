"""Finds the media of records: files, kept below the image folder; addresses; embedded bytes."""

import re
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from phi3v.data.faults import Fault
from phi3v.data.fetching import fetch, is_web_address, shorten
from phi3v.data.options import MediaOptions

# A path or an address as written in a record, or the bytes of an embedded file.
MediaSource: TypeAlias = str | Path | bytes


def locate(
    source: MediaSource, image_folder: str | Path | None, options: MediaOptions
) -> tuple[Path | bytes, str]:
    """Find the file behind what a record says.

    Args:
        source: Path, address or embedded bytes.
        image_folder: Folder of relative paths.
        options: Whether addresses and absolute paths are allowed.

    Returns:
        An existing file that is not empty, or the bytes of one; and its name for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is refused or cannot be opened.
    """
    if isinstance(source, bytes):
        if not source:
            raise Fault("an embedded file is empty (0 bytes); embed it again", "empty file")
        return source, f"an embedded file of {len(source)} bytes"
    if options.allow_urls and is_web_address(str(source)):
        return fetch(str(source)), shorten(str(source))
    path = resolve_path(source, image_folder, allow_absolute=options.allow_absolute_paths)
    return path, str(path)


def resolve_path(
    path: str | Path, image_folder: str | Path | None = None, *, allow_absolute: bool = False
) -> Path:
    """Find a media file below the image folder.

    Args:
        path: As written in the record; relative to `image_folder`, or any path if that is None. A
            "file://" in front is dropped.
        image_folder: Folder that the path may not leave, neither by ".." nor through a link.
        allow_absolute: Take an absolute path as it is although an image folder is given.

    Returns:
        The path of an existing file that is not empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the path is a URL, is absolute, leaves the folder, or is no readable file.
    """
    text = str(path)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    if text.startswith("data:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise Fault(
            f"{text[:80]!r} is a URL; download the file and write its path, or give --allow_urls "
            "for http and https",
            "address refused",
        )
    if "\0" in text:
        raise Fault(f"{text[:200]!r} holds a zero byte; write the plain path", "missing file")
    free = image_folder is None or (allow_absolute and Path(text).is_absolute())
    try:
        full = Path(text) if free else _below(text, Path(str(image_folder)))
        is_file, size = full.is_file(), full.stat().st_size
    except FileNotFoundError:
        where = "" if image_folder is None else f" in the image folder {image_folder}"
        raise FileNotFoundError(f"{text} does not exist{where}; check the path") from None
    # No permission, a loop of links, a name that is too long or holds half a character.
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise Fault(f"{text[:200]!r} cannot be opened: {error}", "damaged file") from None
    if not is_file:
        raise Fault(
            f"{full} is not a file; write the path of a picture or video", "not a picture or video"
        )
    if size == 0:
        raise Fault(f"{full} is empty (0 bytes); fetch or write the file again", "empty file")
    return full


def _below(text: str, folder: Path) -> Path:
    if Path(text).is_absolute():
        raise Fault(
            f"{text} is absolute, but an image folder is given ({folder}); write the path relative "
            "to it, or give --allow_absolute_paths",
            "outside the image folder",
        )
    root = folder.resolve()
    full = (root / text).resolve()
    if not full.is_relative_to(root):
        raise Fault(
            f"{text} leaves the image folder {folder} (it is {full}); move the file inside, or "
            "give a folder that holds both",
            "outside the image folder",
        )
    return full
