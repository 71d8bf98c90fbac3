"""Writing checkpoint folders in the published form."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from phi3v.model.configuration import PHI3_REPOSITORY, published_repository
from phi3v.model.files import read_json
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.processing import Phi3VProcessor

MAX_SHARD_SIZE = "5GB"
FILES_WITH_AUTO_MAP = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)


def save_checkpoint(
    model: Phi3VForCausalLM,
    processor: Phi3VProcessor | None,
    folder: str | Path,
    *,
    base: str | Path | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a whole model in the published form.

    Args:
        model: The model.
        processor: Written beside it, with its ``num_crops``.
        folder: Target; made when absent.
        base: Folder the model came from; its ``*.py`` files are carried along, never run.
        state_dict: Gathered weights when the model itself is sharded.
    """
    folder = Path(folder)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE, state_dict=state_dict)
    if processor is not None:
        processor.save_pretrained(folder)
    carry_code_files(base, folder)


def carry_code_files(base: str | Path | None, folder: Path) -> None:
    """Copy the base folder's ``*.py`` files.

    Where one is absent, ``auto_map`` is made to name the published repository. Programs that rely
    on the published code find it in either case. It is never imported here.
    """
    for file in Path(base).glob("*.py") if base is not None and Path(base).is_dir() else ():
        shutil.copyfile(file, folder / file.name)
    for name in FILES_WITH_AUTO_MAP:
        file = folder / name
        if not file.is_file():
            continue
        fields = read_json(file)
        auto_map = fields.get("auto_map") or {}
        located = {key: _locate(target, folder) for key, target in auto_map.items()}
        if located != auto_map:
            fields["auto_map"] = located
            text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")


def _locate(target: Any, folder: Path) -> Any:
    """Name the repository of a class whose file is not in the folder."""
    if isinstance(target, list):
        return [_locate(item, folder) for item in target]
    if target is None or "--" in target or (folder / f"{target.split('.')[0]}.py").is_file():
        return target
    config = folder / "config.json"
    window = read_json(config).get("sliding_window") if config.is_file() else None
    # Phi-3.5 has no file of its own for the image processor.
    only_phi3 = target.startswith("image_processing_phi3_v.")
    repository = PHI3_REPOSITORY if only_phi3 else published_repository(window)
    return f"{repository}--{target}"
