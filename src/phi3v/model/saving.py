"""Writing checkpoint folders in the published form."""

import json
import shutil
from pathlib import Path

import torch

from phi3v.model.configuration import PUBLISHED_REPOSITORY
from phi3v.model.files import read_json
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.processing import Phi3VProcessor

MAX_SHARD_SIZE = "5GB"


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

    Where one is absent, ``auto_map`` is made to name the published repository.

    Programs that rely on the published code find it in either case. It is never imported here.
    """
    for file in Path(base).glob("*.py") if base is not None and Path(base).is_dir() else ():
        shutil.copyfile(file, folder / file.name)
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        fields = read_json(file)
        auto_map = fields.get("auto_map") or {}
        for key, target in auto_map.items():
            module = target.split("--")[-1].split(".")[0]
            if "--" not in target and not (folder / f"{module}.py").is_file():
                auto_map[key] = f"{PUBLISHED_REPOSITORY}--{target}"
        if auto_map:
            file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
