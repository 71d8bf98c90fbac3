"""Reading the plain files of a checkpoint folder, with errors that say what is wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: The file is unreadable, no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, found {type(content).__name__}")
    return content


def check_weight_files(folder: Path) -> None:
    """Check that all safetensors files of a folder are there and whole, by their headers.

    Raises:
        FileNotFoundError: No weights, or a shard that the index names is missing.
        ValueError: A file is truncated or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("pytorch_model*.bin")):
        raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors or shards")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} names it; copy it again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged or cut off ({error}); copy or download it again"
            ) from error


def read_seed_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read the pickle of weights that adapter folders of the seed project hold.

    Only tensors are read; nothing in the file is run. The original's second name of the token table
    is dropped.

    Raises:
        ValueError: The file is damaged, or holds something else than named tensors.
    """
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read: it is damaged, or holds something else than tensors, and "
            "only tensors are read from a pickle"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"{file} must hold named tensors and nothing else")
    return {name: value for name, value in weights.items() if ".wte." not in name}
