"""Reading the plain files of a checkpoint folder, with errors that say what is wrong."""

import json
from pathlib import Path
from typing import Any

import torch

from phi3v.model.configuration import PUBLISHED_REPOSITORY, Phi3VConfig

ADAPTER_CONFIG = "adapter_config.json"
# The published tokenizer.json has 2 MB; a vast file would only fill the memory.
_MOST_JSON_BYTES = 64 << 20
# Fields by which the library would take other files, or leave out what is checked here.
_REFUSED_FIELDS = {
    "transformers_weights": "weights lie in model.safetensors, or in shards with an index",
    "quantization_config": "store the weights as they are, and quantise them while they are loaded",
    "compression_config": "store the weights as they are, and quantise them while they are loaded",
}
_PROCESSOR_FILES = (
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.json",
)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: The file is unreadable, vast, no JSON, or holds something else than an object.
    """
    try:
        if (size := file.stat().st_size) > _MOST_JSON_BYTES:
            raise ValueError(f"{size:,} bytes are more than the {_MOST_JSON_BYTES:,} of any model")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as JSON: {error}; copy or download it again"
        ) from error
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


def load_config(path: str | Path) -> Phi3VConfig:
    """Read and check the config of a checkpoint folder or hub id.

    Raises:
        FileNotFoundError: There is no such folder, or it has no config.json.
        ValueError: The config is unreadable or that of another model.
    """
    check_exists(path)
    file = Path(path) / "config.json"
    if Path(path).is_dir():
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} has no config.json; expected a Phi-3-vision checkpoint folder"
            )
        _check_config_fields(file, read_json(file))
    try:
        return Phi3VConfig.from_pretrained(path)
    except (OSError, ValueError):
        raise
    # Fields of impossible types end in whatever the library's readers trip over.
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a config: {error}") from error


def _check_config_fields(file: Path, fields: dict[str, Any]) -> None:
    found = fields.get("model_type")
    if found != Phi3VConfig.model_type:
        raise ValueError(
            f"{file} describes a model of type {found!r}, expected 'phi3_v'; phi3v works with "
            "Phi-3-vision and Phi-3.5-vision only"
        )
    stored = fields.get("torch_dtype")
    if stored is not None and not isinstance(getattr(torch, str(stored), None), torch.dtype):
        raise ValueError(f"{file}: torch_dtype is {stored!r}, expected a type such as bfloat16")
    for name, way_out in _REFUSED_FIELDS.items():
        if fields.get(name) is not None:
            raise ValueError(f"{file} has a {name}, which is not read: {way_out}")


def check_processor_files(folder: Path) -> None:
    """Check that the JSON files of processor and tokenizer can be read.

    Raises:
        ValueError: One is damaged.
    """
    for name in _PROCESSOR_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
