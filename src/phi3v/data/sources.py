"""Opens data files, whatever they are; nothing after this module knows the kind of file."""

from pathlib import Path

from phi3v.data.json_records import JsonRecords
from phi3v.data.records import RawRecords


def open_records(path: str | Path, image_folder: str | Path | None = None) -> RawRecords:
    """Open the records of a JSON array or of a file with one JSON object per line.

    Nothing is read yet but the index of the file, see `phi3v.data.index`.

    Args:
        path: The data file.
        image_folder: Folder of the records' media; None if they have full paths.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or not of a known kind; the message says what was found.
    """
    return JsonRecords(Path(path), image_folder)
