"""The command ``phi3v merge``: an adapter and its base become one published folder."""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from phi3v.model.durable import put_in_place, seal, sync_file
from phi3v.model.loading import (
    base_of_adapter,
    is_adapter_folder,
    load_config,
    load_model,
    load_processor,
)
from phi3v.model.saving import carry_code_files, save_checkpoint
from phi3v.model.stored import check_adapter_files, check_weight_files, weight_files
from phi3v.training.merging import Adapter
from phi3v.training.rewriting import rewrite_weights

_INDEX = "model.safetensors.index.json"
_VERIFY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


def merge(
    adapter_folder: str | Path,
    target: str | Path,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Fold an adapter into its base and write a whole model.

    Weights are computed in float32 and rounded once to the base's type. The base's identity is
    kept: config, shards, code files. Processor and ``num_crops`` come from the adapter folder.

    Args:
        adapter_folder: Adapter folder of a run, of PEFT, or of the seed.
        target: Folder to write; appears only when it is complete.
        base: Base folder; None reads it from the adapter folder.
        overwrite: Replace a target that exists.

    Returns:
        The target.

    Raises:
        FileNotFoundError: Adapter or base are missing.
        FileExistsError: The target exists.
        ValueError: The folder is no adapter, or does not fit the base.
    """
    adapter_folder, target = Path(adapter_folder), Path(target)
    if not is_adapter_folder(adapter_folder):
        if (adapter_folder / "config.json").is_file():
            raise ValueError(f"{adapter_folder} is a whole model: there is nothing to merge")
        raise FileNotFoundError(f"{adapter_folder} holds no adapter (no adapter_config.json)")
    base_folder = _base_folder(str(base or base_of_adapter(adapter_folder)))
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; name a new folder or add --overwrite")
    load_config(base_folder)
    check_weight_files(base_folder)
    check_adapter_files(adapter_folder)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        adapter = Adapter(adapter_folder)
        if adapter.is_plain and weight_files(base_folder):
            _merge_streaming(adapter, base_folder, partial)
        else:
            _merge_in_memory(adapter_folder, base_folder, partial)
        _write_other_files(adapter_folder, base_folder, partial)
        seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    attic = target.with_name(target.name + ".replaced")
    put_in_place(partial, target, attic)
    shutil.rmtree(attic, ignore_errors=True)
    return target


def _base_folder(name: str) -> Path:
    """Find the folder of a base; that of a hub id lies in the cache since the training."""
    if Path(name).is_dir():
        return Path(name)
    try:
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.py"]))
        reason = "no such folder"
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
    raise FileNotFoundError(
        f"base model {name} is not here ({reason}); name its folder by --model-base"
    )


def _merge_streaming(adapter: Adapter, base_folder: Path, target: Path) -> None:
    files = weight_files(base_folder)
    with ThreadPoolExecutor(1) as disk:
        synced = []
        for file in files:
            rewrite_weights(file, target / file.name, adapter.change_of)
            # The disk takes it while the next one is computed, and the last while ``seal`` reads.
            if file != files[-1]:
                synced.append(disk.submit(sync_file, target / file.name))
        for one in synced:
            one.result()
    if unused := adapter.unused():
        raise ValueError(
            f"{len(unused)} weights of the adapter have no place in {base_folder}, first "
            f"{unused[0]!r}; it was trained on another base model"
        )
    for name in ("config.json", _INDEX):
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, target / name)


def _merge_in_memory(adapter_folder: Path, base_folder: Path, target: Path) -> None:
    """Let PEFT merge what only it can compute, such as PiSSA's start values, or a pickled base."""
    dtype = load_config(base_folder).dtype
    adapted = load_model(adapter_folder, dtype=torch.float32, base=base_folder)
    merged = adapted.merge_and_unload()
    save_checkpoint(merged.to(dtype), None, target, base=base_folder)


def _write_other_files(adapter_folder: Path, base_folder: Path, target: Path) -> None:
    has_processor = (adapter_folder / "preprocessor_config.json").is_file()
    load_processor(adapter_folder if has_processor else base_folder).save_pretrained(target)
    config = load_config(base_folder)
    stored = base_folder / "generation_config.json"
    generation = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    # The published value names a token that the models never write.
    generation |= {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.stop_token_ids,
        "pad_token_id": config.pad_token_id,
    }
    text = json.dumps(generation, indent=2, sort_keys=True)
    (target / "generation_config.json").write_text(text + "\n", encoding="utf-8")
    carry_code_files(base_folder, target)


@torch.no_grad()
def verify(adapter_folder: str | Path, merged: str | Path, base: str | Path | None = None) -> float:
    """Compare the logits of a merged folder with those of base and adapter.

    Args:
        adapter_folder: Adapter folder.
        merged: Folder that ``merge`` wrote.
        base: Base folder; None reads it from the adapter folder.

    Returns:
        Largest difference of a logit on a fixed prompt with a picture.

    Raises:
        ValueError: The difference is larger than rounding explains.
    """
    processor = load_processor(merged)
    size = 2 * processor.image_processor.crop_size
    picture = torch.arange(size * size * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
    inputs = processor(
        "<|user|>\n<|image_1|>\nWhat is shown?<|end|>\n<|assistant|>\n",
        [picture.view(size, size, 3).numpy()],
        return_tensors="pt",
    )
    whole = load_model(merged)
    after = whole(**inputs).logits
    dtype = whole.dtype
    del whole
    before = load_model(adapter_folder, base=base)(**inputs).logits
    difference = (after - before).abs().max().item()
    if not difference <= _VERIFY_TOLERANCE[dtype]:
        raise ValueError(
            f"{merged} differs from base and adapter by {difference:.3g} in a logit; more than "
            f"rounding to {dtype} explains: do not use it"
        )
    return difference


def main(argv: list[str]) -> int:
    """Run ``phi3v merge``."""
    parser = argparse.ArgumentParser(
        prog="phi3v merge",
        description="Fold an adapter into its base model; the result is a published folder.",
    )
    add = parser.add_argument
    add("--model-path", "--model_path", required=True, help="adapter folder")
    add("--model-base", "--model_base", help="base folder; default: as the adapter says")
    add("--save-model-path", "--save_model_path", required=True, help="folder to write")
    add("--safe-serialization", "--safe_serialization", action="store_true", help="always on")
    add("--verify", action="store_true", help="compare the logits with base and adapter")
    add("--overwrite", action="store_true", help="replace a folder that exists")
    arguments = parser.parse_args(argv)
    target = merge(
        arguments.model_path,
        arguments.save_model_path,
        base=arguments.model_base,
        overwrite=arguments.overwrite,
    )
    print(f"merged into {target}")
    if arguments.verify:
        difference = verify(arguments.model_path, target, arguments.model_base)
        print(f"verified: logits differ by at most {difference:.2g}")
    return 0
