"""Folding an adapter into its base, block by block, without holding the model or a tensor of it.

Letters: O rows and I columns of a weight, r rank, V vocabulary, H hidden size.
"""

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from phi3v.model.files import read_json
from phi3v.model.loading import ADAPTER_CONFIG, SEED_WEIGHTS
from phi3v.model.pickles import read_seed_weights

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Blocks that stay in the cache of a core take a third of the time of large ones.
_BLOCK_BYTES = 1 << 20
_THREADS = 4
# Gets the rows and their stored values; returns the new values of the same shape.
Change = Callable[[slice, Tensor], Tensor]


class Adapter:
    """The tensors of an adapter folder by the name of the base weight that they change.

    Args:
        folder: PEFT folder of this project or of the seed; the seed's ``non_lora_state_dict.bin``
            is read too.

    Raises:
        FileNotFoundError: The adapter's weights are missing.
        ValueError: A weight belongs to nothing that is known here.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_json(folder / ADAPTER_CONFIG)
        file = folder / ADAPTER_WEIGHTS
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {ADAPTER_WEIGHTS}; is the run finished?")
        self._file = safe_open(file, framework="pt")
        self._keys = {_base_name(key): key for key in self._file.keys()}
        self._replaced: dict[str, Tensor] = {}
        if (folder / SEED_WEIGHTS).is_file():
            stored = read_seed_weights(folder / SEED_WEIGHTS)
            self._replaced = {_base_name(key): value for key, value in stored.items()}
        self._used: set[str] = set()

    @property
    def is_plain(self) -> bool:
        """Whether each change follows from the tensors alone; PiSSA's needs the base too."""
        config = self.config
        patterns = config.get("rank_pattern") or config.get("alpha_pattern")
        embedding = any("lora_embedding_" in key for key in self._keys)
        return (
            config.get("peft_type") == "LORA"
            and config.get("init_lora_weights", True) in (True, False, "gaussian")
            and not patterns
            and not config.get("fan_in_fan_out")
            and not (config.get("use_dora") and embedding)
        )

    @property
    def scale(self) -> float:
        """Factor on B A."""
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def change_of(self, name: str, shape: tuple[int, ...]) -> Change | None:
        """Return what changes a weight row by row; None where it stays as it is.

        Args:
            name: Published name, such as ``model.layers.0.mlp.down_proj.weight``.
            shape: (O, I) of the stored base weight.

        Raises:
            ValueError: The adapter was made for a weight of another shape.
        """
        replaced = self._replacement(name, shape)
        module = name.removesuffix(".weight")
        down, up = self._take(f"{module}.lora_A.weight"), self._take(f"{module}.lora_B.weight")
        magnitude = None
        if down is not None and up is not None:
            magnitude = self._take(f"{module}.lora_magnitude_vector")
            down, up = down.float(), up.float()
        else:
            down = self._take(f"{module}.lora_embedding_A")
            up = self._take(f"{module}.lora_embedding_B")
            if down is None or up is None:
                return replaced
            # A table's rows are what its adapter reads.
            down, up = up.float().T, down.float().T
        _check_shape(name, shape, (up.shape[0], down.shape[1]))

        def change(rows: slice, block: Tensor) -> Tensor:
            block = block if replaced is None else replaced(rows, block)
            # Rounded step by step, as PEFT does it; addmm would fuse scale and sum.
            changed = torch.mm(up[rows], down).mul_(self.scale).add_(block)
            if magnitude is None:
                return changed
            return changed * (magnitude[rows].float() / changed.norm(dim=1))[:, None]

        return change

    def _replacement(self, name: str, shape: tuple[int, ...]) -> Change | None:
        """Return what puts a fully trained weight in place of the base's."""
        if name in self._keys:
            self._used.add(name)
            stored = self._file.get_slice(self._keys[name])
            _check_shape(name, shape, tuple(stored.get_shape()))
            if not shape:
                return lambda rows, block: self._file.get_tensor(self._keys[name])
            return lambda rows, block: stored[rows]
        if name in self._replaced:
            whole = self._replaced[name]
            _check_shape(name, shape, tuple(whole.shape))
            return lambda rows, block: whole[rows] if shape else whole
        return None

    def unused(self) -> list[str]:
        """List the adapter's tensors that no base weight has asked for."""
        return sorted(self._keys.keys() - self._used)

    def _take(self, name: str) -> Tensor | None:
        if name not in self._keys:
            return None
        self._used.add(name)
        return self._file.get_tensor(self._keys[name])


def _check_shape(name: str, base: tuple[int, ...], adapted: tuple[int, ...]) -> None:
    if base != adapted:
        raise ValueError(
            f"{name} has shape {base} in the base but {adapted} in the adapter; it was trained on "
            "another base model"
        )


def _base_name(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


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
        done, descriptors = 0, (file.fileno(), out.fileno())
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            change = change_of(name, tuple(entry["shape"]))
            if change is None:
                continue
            first, last = (start + offset for offset in entry["data_offsets"])
            _copy_bytes(*descriptors, done, first)
            blocks = _blocks(entry, first, block_bytes)
            rewrite = partial(_rewrite_block, *descriptors, _TYPES[entry["dtype"]], change)
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


def _rewrite_block(
    file: int,
    out: int,
    dtype: torch.dtype,
    change: Change,
    rows: slice,
    shape: list[int],
    place: int,
) -> None:
    size = math.prod(shape) * dtype.itemsize
    stored = bytearray(os.pread(file, size, place))
    _check_length(len(stored), size)
    block = torch.frombuffer(stored, dtype=dtype).view(shape) if size else torch.empty(shape)
    new = change(rows, block).to(dtype).contiguous()
    _check_length(os.pwrite(out, new.reshape(-1).view(torch.uint8).numpy().data, place), size)


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
