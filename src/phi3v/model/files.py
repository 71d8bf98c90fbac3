"""Reading the plain files of a checkpoint folder, with errors that say what is wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from phi3v.model.configuration import PUBLISHED_REPOSITORY
from phi3v.model.durable import check_sealed_weights

ADAPTER_CONFIG = "adapter_config.json"


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


def check_exists(path: str | Path) -> None:
    """Check that a path is a folder, or at least reads like a hub id.

    Raises:
        FileNotFoundError: It is neither.
    """
    if Path(path).is_dir():
        return
    looks_like_hub_id = str(path).count("/") == 1 and not str(path).startswith((".", "/", "~"))
    if Path(path).exists() or not looks_like_hub_id:
        raise FileNotFoundError(
            f"no checkpoint folder at {path}; expected a folder with config.json or "
            f"{ADAPTER_CONFIG}, or a hub id such as {PUBLISHED_REPOSITORY}"
        )


def check_weight_files(folder: Path) -> None:
    """Check that all safetensors files of a folder are there and whole, by their headers.

    Raises:
        FileNotFoundError: No weights, or a shard that the index names is missing.
        ValueError: A file is truncated or damaged.
    """
    check_sealed_weights(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index} has no weight_map; copy the file again")
        files = [folder / name for name in sorted(set(shards.values()))]
    else:
        files = [file for file in [folder / "model.safetensors"] if file.is_file()]
    pickles = [] if files else sorted(folder.glob("pytorch_model*.bin"))
    if not files and not pickles:
        raise FileNotFoundError(
            f"{folder} holds no weights: expected model.safetensors, or shards with {index.name}"
        )
    for file in pickles:
        _load_tensors(file)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} names it; copy it again")
        _check_whole(file)


def check_loaded_weights(path: str | Path, report: dict[str, Any]) -> None:
    """Refuse weights that are not exactly those that the config describes.

    Args:
        path: Checkpoint, for the message.
        report: What ``from_pretrained`` tells about the keys of the files.

    Raises:
        ValueError: Weights lack, are left over, or have other shapes.
    """
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise ValueError(
            f"{path} holds {len(mismatched)} weights of other shapes than its config.json "
            f"describes, first {name!r}: {tuple(stored)} instead of {tuple(expected)}; the two "
            "files belong to different models"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's weights, first {missing[0]!r}; the "
            "checkpoint is incomplete: copy or save it again"
        )
    if surplus := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"{path} holds {len(surplus)} weights that its config.json does not describe, first "
            f"{surplus[0]!r}; the two files belong to different models"
        )


def check_adapter_files(folder: Path) -> None:
    """Check that an adapter folder has its weights and that they are whole.

    Raises:
        FileNotFoundError: No weights.
        ValueError: The file is truncated or damaged.
    """
    check_sealed_weights(folder)
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        _check_whole(file)
    elif not (folder / "adapter_model.bin").is_file():
        raise FileNotFoundError(
            f"{folder} holds no adapter weights: expected {file.name}; copy or train it again"
        )


def check_processor_files(folder: Path) -> None:
    """Check that the JSON files of processor and tokenizer can be read.

    Raises:
        ValueError: One is damaged.
    """
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        if (folder / name).is_file():
            read_json(folder / name)


def _check_whole(file: Path) -> None:
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
    weights = _load_tensors(file)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"{file} must hold named tensors and nothing else")
    return {name: value for name, value in weights.items() if ".wte." not in name}


def _load_tensors(file: Path) -> Any:
    """Read a pickle of tensors, mapped into memory; nothing else in it is run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read: it is damaged, or holds something else than tensors, and "
            "only tensors are read from a pickle"
        ) from error
