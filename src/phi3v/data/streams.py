"""Walks through the files of a data set from front to back, without an index.

An item knows where its record stands before it is read, so what was trained on already is passed
over without reading a record or opening a picture.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from phi3v.data.fetching import is_web_address, shorten
from phi3v.data.json_records import scan_json
from phi3v.data.patterns import expand, expand_braces, is_pattern
from phi3v.data.records import Place, describe_record
from phi3v.data.remote import RemoteFile
from phi3v.data.sources import HEAD_BYTES, look, look_at
from phi3v.data.structure import SPACE
from phi3v.data.tables import check_parquet
from phi3v.data.tar_records import read_sample, scan_tar


@dataclass
class Item:
    """One record on its way.

    Attributes:
        place: Where it stands.
        fetch: Gets it from its file.
        raw: The record, if it was fetched already.
    """

    place: Place
    fetch: Callable[[], Any]
    raw: Any = None

    def keep(self) -> None:
        """Fetch the record now, while its part of the file is at hand."""
        raw = self.raw = self.fetch()
        # What it was fetched from may go.
        self.fetch = lambda: raw

    def read(self) -> Any:
        """Give the raw record.

        Raises:
            ValueError: If it is malformed; the message names it.
        """
        if self.raw is not None:
            return self.raw
        try:
            return self.fetch()
        except ValueError as error:
            name = describe_record(self.place.index, self.place)
            raise ValueError(f"{name}: {error}") from None


@dataclass(frozen=True)
class StreamFile:
    """One file to walk through.

    Attributes:
        path: The file, or its address.
        kind: "json" (lines), "tar" or "parquet".
        is_remote: Whether it is read from the web while it arrives.
    """

    path: str
    kind: str
    is_remote: bool = False

    @property
    def keeps(self) -> bool:
        """Whether items should be fetched as they come, as going back is slow."""
        return self.kind == "parquet"

    def items(self) -> Iterator[Item]:
        """Walk through the file."""
        if self.is_remote:
            return _walk_remote(self.path, self.kind)
        walk = {"json": _walk_lines, "tar": _walk_tar, "parquet": _walk_parquet}[self.kind]
        return walk(Path(self.path))


def stream_files(path: str | Path, *, allow_urls: bool = False) -> list[StreamFile]:
    """List the files of a data set that can be streamed.

    Args:
        path: A file of JSON lines, a parquet or a tar file, a pattern of such files, or a folder of
            tar or parquet files; or the address of JSON lines or of a tar file, with braces for
            several.
        allow_urls: Whether addresses may be opened.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be streamed.
    """
    name = str(path)
    if is_web_address(name):
        return _remote_files(name, allow_urls=allow_urls)
    if is_pattern(name) and not Path(name).exists():
        paths = expand(name)
    elif Path(name).is_dir():
        folder = Path(name)
        paths = sorted(folder.glob("*.tar")) or sorted(folder.rglob("*.parquet"))
        if not paths:
            raise ValueError(
                f"{name} holds no *.tar and no *.parquet; --streaming reads tar, parquet and JSON "
                "lines"
            )
    elif Path(name).is_file():
        paths = [Path(name)]
    else:
        raise FileNotFoundError(f"data file {name} does not exist; check the path")
    return [StreamFile(str(one), _check_kind(one)) for one in paths]


def _remote_files(name: str, *, allow_urls: bool) -> list[StreamFile]:
    if not allow_urls:
        raise ValueError(f"--streaming: {shorten(name)} is a URL; give --allow_urls to open it")
    addresses = expand_braces(name)
    # One look tells the kind of all; a missing one is met, and named, when its turn comes.
    with RemoteFile(addresses[0]) as file:
        kind = look_at(file.read(HEAD_BYTES), Path(addresses[0]))
        file.seek(0)
        is_array = kind == "json" and file.read(HEAD_BYTES).lstrip().startswith(b"[")
    if kind not in ("json", "tar") or is_array:
        found = "a JSON array" if is_array else kind
        raise ValueError(
            f"--streaming: {shorten(addresses[0])} is {found}; from the web, tar files and JSON "
            "lines can be read"
        )
    return [StreamFile(address, kind, is_remote=True) for address in addresses]


def _check_kind(path: Path) -> str:
    kind = look(path)
    if kind == "yaml":
        raise ValueError(f"--streaming: {path} is a list of sources; stream one source at a time")
    if kind == "parquet":
        check_parquet(path)
    if kind == "json":
        with path.open("rb") as file:
            if scan_json(file, path)[0]:
                raise ValueError(
                    f"--streaming: {path} is a JSON array; write one record per line, or leave "
                    "--streaming out: an array is never held in memory either"
                )
    return kind


def _walk_lines(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        yield from _line_items(file, str(path))


def _line_items(lines: Iterable[bytes], name: str) -> Iterator[Item]:
    index = 0
    for line, text in enumerate(lines, start=1):
        if text.strip(SPACE):
            yield Item(Place(name, index, line), partial(_parse, text))
            index += 1


def _walk_remote(url: str, kind: str) -> Iterator[Item]:
    with RemoteFile(url) as file:
        if kind == "json":
            yield from _line_items(file.lines(), url)
            return
        index = 0
        for batch in scan_tar(file):
            for start, end, _, _ in batch:
                content = file.take(start, end)
                yield Item(Place(url, index), partial(read_sample, content, url))
                index += 1


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"malformed JSON ({error}); repair it") from None


def _walk_tar(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        index = 0
        for batch in scan_tar(file):
            for start, end, _, _ in batch:
                yield Item(
                    Place(str(path), index),
                    partial(_read_tar, path, start, end),
                )
                index += 1


def _read_tar(path: Path, start: int, end: int) -> Any:
    with path.open("rb", buffering=0) as file:
        return read_sample(os.pread(file.fileno(), end - start, start), path.name)


def _walk_parquet(path: Path) -> Iterator[Item]:
    from pyarrow.parquet import ParquetFile

    index = 0
    with ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            rows = _Rows(path, number)
            for row in range(file.metadata.row_group(number).num_rows):
                yield Item(Place(str(path), index), partial(rows.read, row))
                index += 1


class _Rows:
    """The rows of one row group of a parquet file, read together when the first is wanted."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        self._table: Any = None

    def read(self, row: int) -> Any:
        if self._table is None:
            from pyarrow.parquet import ParquetFile

            with ParquetFile(self._path) as file:
                self._table = file.read_row_group(self._number)
        return self._table.slice(row, 1).to_pylist()[0]
