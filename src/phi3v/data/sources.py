"""Opens data sets, whatever they are; nothing after this module knows the kind of file.

The kind is told by looking at the first bytes of a file or at what lies in a folder.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from phi3v.data.indexed_file import IndexedFile
from phi3v.data.joined import MixedRecords, Part, ShardedRecords
from phi3v.data.json_records import JsonRecords
from phi3v.data.patterns import expand, is_pattern
from phi3v.data.records import RawRecords
from phi3v.data.tables import open_named, open_parquet, open_picture_folder, open_saved
from phi3v.data.tar_records import TarRecords

HEAD_BYTES = 1 << 12
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_ITEM_KEYS = ("path", "image_folder", "weight", "name", "split", "config")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_ENDINGS = (".json", ".jsonl", ".parquet", ".tar", ".yaml", ".yml", ".arrow", ".csv", ".tsv")


def open_records(
    path: str | Path | Sequence[str | Path],
    image_folder: str | Path | None = None,
    *,
    seed: int = 0,
) -> RawRecords:
    """Open the records of a data set; nothing is read but indexes and headers.

    Args:
        path: A JSON array or a file of JSON lines; parquet; a tar file in the WebDataset layout; a
            pattern of such files (``shards/{000..012}.tar``, ``data/*.parquet``); a folder of
            shards, of parquet, of pictures with metadata, or written by ``save_to_disk``; the id of
            a data set on the hub; a YAML list of several of these; or a list of paths.
        image_folder: Folder of the records' media; None if they have full paths.
        seed: Chooses the records that the fraction of a weight takes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of no known kind or damaged; the message says what was found.
    """
    if not isinstance(path, str | Path):
        parts = [Part(str(one), open_records(one, image_folder)) for one in path]
        if not parts:
            raise ValueError("the list of data files is empty; name at least one")
        return MixedRecords(parts, seed)
    if Path(path).is_file() and look(Path(path)) == "yaml":
        return _open_mixture(Path(path), image_folder, seed)
    return _open_one(path, image_folder)


def look(path: Path) -> str:
    """Tell what a file is by its first bytes: "json", "yaml", "parquet" or "tar".

    Raises:
        ValueError: If it is compressed, or a part of something else.
    """
    with path.open("rb") as file:
        return look_at(file.read(HEAD_BYTES), path)


def look_at(head: bytes, path: Path) -> str:
    """Tell what a file is by its first `HEAD_BYTES`; see `look`."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "tar"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path} is compressed by {name}; unpack it, so that single records can be read"
            )
    if head.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is a zip archive; unpack it and name what is inside")
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        raise ValueError(f"{path} is a part of a data set; name its folder {path.parent}")
    is_list = re.match(rb"(?:\s*#[^\n]*\n)*\s*(?:---\s*)?-\s", head) is not None
    return "yaml" if is_list or path.suffix in (".yaml", ".yml") else "json"


def find_shards(path: str | Path) -> list[Path] | None:
    """List the files that a pattern or a folder of tar files stands for; None for anything else.

    Raises:
        FileNotFoundError: If a file of a pattern is missing.
    """
    if is_pattern(str(path)) and not Path(path).exists():
        return expand(str(path))
    return sorted(Path(path).glob("*.tar")) or None if Path(path).is_dir() else None


def _open_one(
    path: str | Path,
    image_folder: str | Path | None,
    split: str | None = None,
    config: str | None = None,
) -> RawRecords:
    shards = find_shards(path)
    name = str(path)
    if shards is not None:
        return _open_files(shards, name, image_folder)
    path = Path(path)
    if path.is_file():
        return _open_files([path], name, image_folder)
    if path.is_dir():
        return _open_folder(path, image_folder, split)
    if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_ENDINGS):
        return open_named(name, image_folder, split, config)
    raise FileNotFoundError(f"data file {path} does not exist; check the path")


def _open_files(paths: Sequence[Path], name: str, image_folder: str | Path | None) -> RawRecords:
    kinds = {look(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        found = ", ".join(f"{path.name} ({kind})" for kind, path in sorted(kinds.items()))
        raise ValueError(f"{name} holds files of several kinds: {found}; name those of one kind")
    kind = next(iter(kinds))
    if kind == "parquet":
        return open_parquet(paths, name, image_folder)
    if kind == "yaml":
        raise ValueError(f"{name} is a list of sources itself; name the sources one by one")
    open_file: type[IndexedFile] = TarRecords if kind == "tar" else JsonRecords
    if len(paths) == 1:
        return open_file(paths[0], image_folder)
    return ShardedRecords(paths, open_file, image_folder)


def _open_folder(path: Path, image_folder: str | Path | None, split: str | None) -> RawRecords:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return open_saved(path, image_folder, split)
    if any(path.glob("metadata.*")) or any(path.glob("*/metadata.*")):
        return open_picture_folder(path, split)
    if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
        return open_named(str(path), image_folder, split, None)
    held = sorted(one.name for one in path.iterdir())[:5]
    raise ValueError(
        f"{path} is a folder of {', '.join(held) or 'nothing'}; expected *.tar shards, *.parquet, "
        "pictures with a metadata.jsonl, or a folder written by save_to_disk; or name a file in it"
    )


def _open_mixture(path: Path, image_folder: str | Path | None, seed: int) -> RawRecords:
    """Open a YAML list of sources."""
    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(
            f"{path}: expected a list of sources, such as '- {{path: a.json, image_folder: images, "
            "weight: 2}'"
        )
    return MixedRecords(
        [_open_item(item, number, path, image_folder) for number, item in enumerate(items, 1)], seed
    )


def _open_item(item: Any, number: int, file: Path, image_folder: str | Path | None) -> Part:
    name = f"{file}: source {number}"
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
        raise ValueError(f"{name} is {_short(item)}; expected a mapping with 'path'")
    if unknown := [key for key in item if key not in _ITEM_KEYS]:
        raise ValueError(f"{name} has {unknown[0]!r}; it may have {', '.join(_ITEM_KEYS)}")
    for key in ("image_folder", "name", "split", "config"):
        if not isinstance(item.get(key), str | None):
            raise ValueError(f"{name}: {key} is {_short(item[key])}; expected a text")
    weight = item.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e6:
        raise ValueError(f"{name}: weight is {_short(weight)}; expected a number above 0")
    folder = image_folder
    if item.get("image_folder") is not None:
        folder = _beside(str(item["image_folder"]), file)
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{name}: image folder {folder} does not exist")
    try:
        records = _open_one(
            _beside(item["path"], file), folder, item.get("split"), item.get("config")
        )
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from None
    return Part(str(item.get("name", item["path"])), records, float(weight))


def _short(value: Any) -> str:
    """Show a value; one that refers to itself many times would fill the memory in full."""
    return reprlib.repr(value)[:200]


def _beside(text: str, file: Path) -> str:
    """Read a path of a list from the list's own folder; an id of the hub stays as it is."""
    own = file.parent / text
    if own.exists() or is_pattern(text) or text.endswith(_FILE_ENDINGS):
        return str(own)
    return text
