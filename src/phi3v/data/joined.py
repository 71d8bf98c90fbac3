"""Several sources as one: shards of a data set, and mixtures with weights."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from phi3v.data.indexed_file import IndexedFile
from phi3v.data.records import Place, RawRecords

# Each open shard holds two file descriptors, of which a process often has but 1,024.
_MOST_OPEN = 32


class ShardedRecords:
    """The records of several files of one kind, in the order of the files.

    Args:
        paths: The files.
        open_file: Opens one of them.
        image_folder: Folder of their media.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        open_file: Callable[[Path, str | Path | None], IndexedFile],
        image_folder: str | Path | None = None,
    ) -> None:
        self.paths = list(paths)
        self._open_file = open_file
        self._image_folder = image_folder
        self._opened: OrderedDict[int, IndexedFile] = OrderedDict()
        digest = hashlib.blake2b(digest_size=16)
        counts = []
        for number in range(len(self.paths)):
            counts.append(len(self._shard(number)))
            digest.update(self._shard(number).fingerprint().encode() + b"\n")
        self._ends = list(accumulate(counts))
        self._digest = digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Any:
        shard, inside = self._find(number)
        return self._shard(shard)[inside]

    def place(self, number: int) -> Place:
        """Tell where a record stands in its shard."""
        shard, inside = self._find(number)
        return self._shard(shard).place(inside)

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of the media."""
        return self._image_folder

    def fingerprint(self) -> str:
        """Name the state of all shards."""
        return self._digest

    def _find(self, number: int) -> tuple[int, int]:
        return _locate(number, self._ends)

    def _shard(self, number: int) -> IndexedFile:
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            self._opened[number] = self._open_file(self.paths[number], self._image_folder)
            if len(self._opened) > _MOST_OPEN:
                self._opened.popitem(last=False)[1].close()
        return self._opened[number]


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        name: How it is called.
        records: Its records.
        weight: How often each of them is taken; of a fraction, a random choice is taken once more.
    """

    name: str
    records: RawRecords
    weight: float = 1.0


class MixedRecords:
    """The records of several sources, one source behind the other.

    Args:
        parts: The sources.
        seed: Chooses which records the fractions of weights take.

    Attributes:
        shares: Name of every source and number of its records in the mixture.
    """

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        self._records = [part.records for part in parts]
        self._choices: list[np.ndarray] = []
        counts = []
        digest = hashlib.blake2b(f"{seed}".encode(), digest_size=16)
        for number, part in enumerate(parts):
            size = len(part.records)
            chosen = round((part.weight - int(part.weight)) * size)
            random = np.random.default_rng([seed, number])
            self._choices.append(np.sort(random.permutation(size)[:chosen]).astype(np.int64))
            counts.append(int(part.weight) * size + chosen)
            if not counts[-1]:
                raise ValueError(
                    f"source {part.name!r} has {size} records: weight {part.weight} takes none of "
                    "them; raise it, or leave the source out"
                )
            digest.update(f"{part.weight} {part.records.fingerprint()}\n".encode())
        self.shares = [(part.name, count) for part, count in zip(parts, counts, strict=True)]
        self._ends = list(accumulate(counts))
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Any:
        part, inside = self._find(number)
        return self._records[part][inside]

    def place(self, number: int) -> Place:
        """Tell where a record stands in its own file."""
        part, inside = self._find(number)
        return self._records[part].place(inside)

    def image_folder(self, number: int) -> str | Path | None:
        """Give the folder of the media of a record's source."""
        part, inside = self._find(number)
        return self._records[part].image_folder(inside)

    def fingerprint(self) -> str:
        """Name the state of all sources and their weights."""
        return self._digest

    def repeats(self) -> np.ndarray:
        """Tell which records a weight has taken before; bool (R,)."""
        start, parts = 0, []
        for records, end in zip(self._records, self._ends, strict=True):
            # Whole passes come first, so the first of a source are all of its records.
            parts.append(np.arange(end - start) >= len(records))
            start = end
        return np.concatenate(parts)

    def _find(self, number: int) -> tuple[int, int]:
        part, inside = _locate(number, self._ends)
        size = len(self._records[part])
        repeated = self._ends[part] - (self._ends[part - 1] if part else 0)
        whole = repeated - len(self._choices[part])
        return part, inside % size if inside < whole else int(self._choices[part][inside - whole])


def _locate(number: int, ends: Sequence[int]) -> tuple[int, int]:
    """Find the part that holds a record, and the record's number in it."""
    if not -ends[-1] <= number < ends[-1]:
        raise IndexError(f"record {number} of {ends[-1]}")
    number %= ends[-1]
    part = bisect_right(ends, number)
    return part, number - (ends[part - 1] if part else 0)
