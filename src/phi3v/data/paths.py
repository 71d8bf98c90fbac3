"""Finds the media files of records and keeps them below the image folder."""

import re
from pathlib import Path
from urllib.parse import unquote


def resolve_path(path: str | Path, image_folder: str | Path | None = None) -> Path:
    """Find a media file below the image folder.

    Args:
        path: As written in the record; relative to `image_folder`, or any path if that is None. A
            "file://" in front is dropped.
        image_folder: Folder that the path may not leave, neither by ".." nor through a link.

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
        raise ValueError(f"{text[:80]!r} is a URL; download the file and write its path")
    try:
        full = Path(text) if image_folder is None else _below(text, Path(image_folder))
        is_file, size = full.is_file(), full.stat().st_size
    except FileNotFoundError:
        where = "" if image_folder is None else f" in the image folder {image_folder}"
        raise FileNotFoundError(f"{text} does not exist{where}; check the path") from None
    except (OSError, RuntimeError) as error:  # no permission, a loop of links, a name too long
        raise ValueError(f"{text[:200]!r} cannot be opened: {error}") from None
    if not is_file:
        raise ValueError(f"{full} is not a file; write the path of a picture or video")
    if size == 0:
        raise ValueError(f"{full} is empty (0 bytes); fetch or write the file again")
    return full


def _below(text: str, folder: Path) -> Path:
    if "\0" in text:
        raise ValueError(f"{text!r} holds a zero byte; write the plain path")
    if Path(text).is_absolute():
        raise ValueError(
            f"{text} is absolute, but an image folder is given ({folder}); write the path relative "
            "to it, or give no image folder"
        )
    root = folder.resolve()
    full = (root / text).resolve()
    if not full.is_relative_to(root):
        raise ValueError(
            f"{text} leaves the image folder {folder} (it is {full}); move the file inside, or "
            "give a folder that holds both"
        )
    return full
