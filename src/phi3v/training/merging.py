"""What an adapter changes in its base, row by row.

Letters: O rows and I columns of a weight, r rank, V vocabulary, H hidden size.
"""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from phi3v.model.files import read_json
from phi3v.model.loading import ADAPTER_CONFIG, SEED_WEIGHTS
from phi3v.model.pickles import read_seed_weights
from phi3v.training.rewriting import Change

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
        scale = self.scale
        if math.frexp(scale)[0] == 0.5:
            # A power of two rounds nothing, wherever it is applied.
            up, scale = up * scale, 1.0

        def change(rows: slice, block: Tensor, room: Tensor) -> Tensor:
            block = block if replaced is None else replaced(rows, block, room)
            # Rounded step by step, as PEFT does it; addmm would fuse scale and sum.
            changed = torch.mm(up[rows], down, out=room)
            changed = (changed if scale == 1 else changed.mul_(scale)).add_(block)
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
                return lambda *_: self._file.get_tensor(self._keys[name])
            return lambda rows, *_: stored[rows]
        if name in self._replaced:
            whole = self._replaced[name]
            _check_shape(name, shape, tuple(whole.shape))
            return lambda rows, *_: whole[rows] if shape else whole
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
