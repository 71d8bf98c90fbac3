"""Folding an adapter into its base, tensor by tensor, without holding the model.

Letters: O rows and I columns of a weight, r rank, V vocabulary, H hidden size.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from phi3v.model.files import read_json, read_seed_weights
from phi3v.model.loading import ADAPTER_CONFIG, SEED_WEIGHTS

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


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

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """Return the changed weight in float32, or the weight itself where nothing changes.

        Args:
            name: Published name, such as ``model.layers.0.mlp.down_proj.weight``.
            weight: (O, I) stored base weight.
        """
        weight = self._replaced.get(name, weight)
        own = self._take(name)
        weight = weight if own is None else own
        module = name.removesuffix(".weight")
        down, up = self._take(f"{module}.lora_A.weight"), self._take(f"{module}.lora_B.weight")
        if down is not None and up is not None:
            _check_shape(name, weight, (up.shape[0], down.shape[1]))
            changed = weight.float() + self.scale * (up.float() @ down.float())
            magnitude = self._take(f"{module}.lora_magnitude_vector")
            if magnitude is None:
                return changed
            return changed * (magnitude.float() / changed.norm(dim=1))[:, None]
        down = self._take(f"{module}.lora_embedding_A")
        up = self._take(f"{module}.lora_embedding_B")
        if down is not None and up is not None:
            _check_shape(name, weight, (down.shape[1], up.shape[0]))
            return weight.float() + self.scale * (up.float() @ down.float()).T
        return weight

    def unused(self) -> list[str]:
        """List the adapter's tensors that no base weight has asked for."""
        return sorted(self._keys.keys() - self._used)

    def _take(self, name: str) -> Tensor | None:
        if name not in self._keys:
            return None
        self._used.add(name)
        return self._file.get_tensor(self._keys[name])


def _check_shape(name: str, base: Tensor, adapted: tuple[int, ...]) -> None:
    if tuple(base.shape) != adapted:
        raise ValueError(
            f"{name} has shape {tuple(base.shape)} in the base but {adapted} in the adapter; it "
            "was trained on another base model"
        )


def _base_name(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


def rewrite_weights(source: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Copy a safetensors file with changed tensors; types, order and layout stay.

    One tensor is in memory at a time.

    Args:
        source: File to read.
        target: File to write.
        change: Gets name and tensor, returns the new tensor of the same shape.
    """
    with source.open("rb") as file:
        header_bytes = file.read(8 + int.from_bytes(_read_exactly(source, 8), "little"))
    header: dict[str, Any] = json.loads(header_bytes[8:])
    header.pop("__metadata__", None)
    with safe_open(source, framework="pt") as tensors, target.open("wb") as out:
        out.write(header_bytes)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            old = tensors.get_tensor(name)
            new = change(name, old)
            _check_shape(name, old, tuple(new.shape))
            _write_tensor(out, new.to(old.dtype), entry)


def _read_exactly(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(count)


def _write_tensor(out: BinaryIO, tensor: Tensor, entry: dict[str, Any]) -> None:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    start, end = entry["data_offsets"]
    assert data.numel() == end - start
    out.write(data.numpy().data)


def weight_files(folder: Path) -> Iterator[Path]:
    """Walk over the safetensors files of a checkpoint in order."""
    yield from sorted(folder.glob("model*.safetensors"))
