"""Records in parquet files and data sets of the Hugging Face library ``datasets``.

A row is a raw record; columns of pictures give embedded bytes or paths and are not decoded. Rows
are read from the memory map that the library keeps, so processes share them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3v.data.records import Place

logger = logging.getLogger(__name__)


class TableRecords:
    """The rows of a data set.

    Args:
        dataset: A ``datasets.Dataset``.
        name: How messages name it: its file, folder or id.
        image_folder: Folder of media that are given by paths.
    """

    def __init__(self, dataset: Any, name: str, image_folder: str | Path | None = None) -> None:
        self._rows = dataset.with_format("arrow")
        self._name = name
        self._image_folder = image_folder
        if not len(self._rows):
            raise ValueError(f"{name}: holds no records")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        row = self._rows[number % len(self)].to_pylist()[0]
        return _below(row, str(self._image_folder) + "/") if self._image_folder else row

    def place(self, number: int) -> Place:
        """Tell where a row stands."""
        return Place(self._name, number % len(self))

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of the media."""
        return self._image_folder

    def fingerprint(self) -> str:
        """Name the state of the data set and its folder."""
        return f"{self._rows._fingerprint} {self._image_folder}"


def _below(value: Any, folder: str) -> Any:
    """Make the paths relative that the library wrote in full for files of a folder."""
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"} and isinstance(value["path"], str):
            return {**value, "path": value["path"].removeprefix(folder)}
        return {key: _below(one, folder) for key, one in value.items()}
    return [_below(one, folder) for one in value] if isinstance(value, list) else value


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{name} needs the library datasets; install it: pip install 'phi3v[datasets]'"
        ) from None
    return datasets


def open_parquet(paths: Sequence[Path], name: str, image_folder: str | Path | None) -> TableRecords:
    """Open parquet files as one data set.

    Raises:
        ValueError: If one is no whole parquet file, or they do not fit together.
    """
    datasets = _library(name)
    for path in paths:
        check_parquet(path)
    files = [str(path) for path in paths]
    loaded = _load(name, lambda: datasets.load_dataset("parquet", data_files=files, split="train"))
    return TableRecords(loaded, name, image_folder)


def check_parquet(path: Path) -> None:
    """Read the end of a parquet file.

    Raises:
        ValueError: If it is damaged or cut off.
    """
    _library(str(path))
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        read_metadata(path)
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut off ({str(error).splitlines()[0]}); fetch it again"
        ) from None


def open_saved(path: Path, image_folder: str | Path | None, split: str | None) -> TableRecords:
    """Open a folder that ``save_to_disk`` wrote."""
    datasets = _library(str(path))
    loaded = _load(str(path), lambda: datasets.load_from_disk(str(path)))
    return TableRecords(_choose(loaded, split, str(path)), str(path), image_folder)


def open_picture_folder(path: Path, split: str | None) -> TableRecords:
    """Open a folder of pictures with a ``metadata`` file beside them."""
    datasets = _library(str(path))
    full = str(path.resolve())
    loaded = _load(full, lambda: datasets.load_dataset("imagefolder", data_dir=full))
    return TableRecords(_choose(loaded, split, str(path)), str(path), full)


def open_named(
    name: str, image_folder: str | Path | None, split: str | None, config: str | None
) -> TableRecords:
    """Open a folder in the layout of the hub, or a data set of the hub by its id."""
    datasets = _library(name)
    loaded = _load(name, lambda: datasets.load_dataset(name, config))
    return TableRecords(_choose(loaded, split, name), name, image_folder)


def _load(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    # The library raises many kinds, of its own and of others; to the user all mean the same.
    except Exception as error:
        reasons = [*map(str, (error, error.__cause__) if error.__cause__ else (error,))]
        reason = "; ".join(text.strip().splitlines()[0] for text in reasons if text.strip())
        raise ValueError(f"{name} cannot be opened as a data set: {reason}") from error


def _choose(loaded: Any, split: str | None, name: str) -> Any:
    """Choose a split: the one that is asked for, the only one, or that for training."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise ValueError(f"{name} has no splits, but split {split!r} is asked for")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if (split or "train") not in loaded:
        raise ValueError(
            f"{name} has the splits {', '.join(loaded)}, but not {split or 'train'!r}; name one in "
            f"a YAML list of sources: - {{path: {name}, split: {next(iter(loaded))}}}"
        )
    return loaded[split or "train"]
