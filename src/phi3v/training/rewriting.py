"""Copying a file of weights with changed tensors, block by block, without holding one of them."""

import json
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Blocks that stay in the cache of a core take a third of the time of large ones.
_BLOCK_BYTES = 1 << 20
_THREADS = 4
# Gets the rows, their values in float32, and room for as many, which it may return; returns the new
# values of the same shape.
Change = Callable[[slice, Tensor, Tensor], Tensor]


def rewrite_weights(
    source: Path,
    target: Path,
    change_of: Callable[[str, tuple[int, ...]], Change | None],
    *,
    block_bytes: int = _BLOCK_BYTES,
) -> None:
    """Copy a safetensors file with changed tensors; types, order and layout stay.

    What stays as it is is copied by the system; the rest goes through memory in blocks of rows,
    several at a time.

    Args:
        source: File to read.
        target: File to write.
        change_of: Gets name and shape; see ``Adapter.change_of``.
        block_bytes: Stored bytes of a block, about.
    """
    with source.open("rb") as file, target.open("wb") as out, ThreadPoolExecutor(_THREADS) as pool:
        start = 8 + int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        done, descriptors, rooms = 0, (file.fileno(), out.fileno()), _Rooms()
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            change = change_of(name, tuple(entry["shape"]))
            if change is None:
                continue
            first, last = (start + offset for offset in entry["data_offsets"])
            _copy_bytes(*descriptors, done, first)
            blocks = _blocks(entry, first, block_bytes)
            rewrite = partial(_rewrite_block, *descriptors, rooms, _TYPES[entry["dtype"]], change)
            # Going through the results raises what a thread has raised.
            for _ in pool.map(rewrite, *zip(*blocks, strict=True)):
                pass
            done = last
        _copy_bytes(*descriptors, done, source.stat().st_size)


def _blocks(
    entry: dict[str, Any], first: int, block_bytes: int
) -> list[tuple[slice, list[int], int]]:
    """Cut a tensor of a file into equal (rows, shape, place in the file).

    A short rest would be multiplied by another kernel, and differ in the last digits.
    """
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not shape or end == start:
        return [(slice(None), shape, first)]
    per_row = (end - start) // shape[0]
    count = min(-(-(end - start) // block_bytes), shape[0])
    edges = [shape[0] * place // count for place in range(count + 1)]
    rows = [slice(*pair) for pair in pairwise(edges)]
    return [(one, [one.stop - one.start, *shape[1:]], first + one.start * per_row) for one in rows]


class _Rooms(threading.local):
    """Memory of a thread for one block, used again: new memory costs more than the block's work."""

    def __init__(self) -> None:
        self._stored, self._wide = bytearray(), torch.empty(2, 0)

    def get(self, num_bytes: int, numel: int) -> tuple[memoryview, Tensor]:
        """Return room for stored bytes, and twice for their numbers in float32."""
        if len(self._stored) < num_bytes:
            self._stored = bytearray(num_bytes)
        if self._wide.shape[1] < numel:
            self._wide = torch.empty(2, numel)
        return memoryview(self._stored)[:num_bytes], self._wide[:, :numel]


def _rewrite_block(
    file: int,
    out: int,
    rooms: _Rooms,
    dtype: torch.dtype,
    change: Change,
    rows: slice,
    shape: list[int],
    place: int,
) -> None:
    numel = math.prod(shape)
    if not numel:
        return
    stored, (wide, room) = rooms.get(numel * dtype.itemsize, numel)
    _check_length(os.preadv(file, [stored], place), len(stored))
    block = torch.frombuffer(stored, dtype=dtype).view(shape)
    values = wide.view(shape).copy_(block)
    # Rounded into its own place.
    block.copy_(change(rows, values, room.view(shape)))
    _check_length(os.pwrite(out, stored, place), len(stored))


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{found} of {expected} bytes were read or written; is the base complete, and is there "
            "room on the disk?"
        )


def _copy_bytes(file: int, out: int, start: int, end: int) -> None:
    """Copy a stretch of a file to the same place without taking it into this process."""
    os.lseek(out, start, os.SEEK_SET)
    while start < end:
        sent = os.sendfile(out, file, start, end - start)
        _check_length(min(sent, 1), 1)
        start += sent
