"""The weight files of a checkpoint: which they are, and what stands in their headers."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from phi3v.model.durable import check_sealed_weights
from phi3v.model.files import ADAPTER_CONFIG, read_json
from phi3v.model.pickles import read_tensors

Shape = tuple[int, ...]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = ("BF16", "F16", "F32", "F64")
# By these PEFT would import a module, open other files, or make layers that are not stored.
_REFUSED_ADAPTER_FIELDS = (
    *("megatron_config", "corda_config", "arrow_config", "layer_replication"),
    "alora_invocation_tokens",
)


def check_weight_files(folder: Path) -> dict[str, Shape]:
    """Check that all weight files of a folder are there and whole, by their headers.

    Returns:
        Names and shapes of the weights.

    Raises:
        FileNotFoundError: No weights, or a shard that the index names is missing.
        ValueError: A file is truncated or damaged, or the index names one outside of the folder.
    """
    check_sealed_weights(folder)
    files = weight_files(folder)
    if not files:
        return _pickled_shapes(folder)
    shapes: dict[str, Shape] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {INDEX} names it; copy it again")
        shapes |= read_header(file)
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that the library reads; none where the weights are pickled.

    Raises:
        ValueError: The index is damaged, or names a file outside of the folder.
    """
    if (whole := folder / WEIGHTS).is_file():
        return [whole]
    return _shards(folder / INDEX) if (folder / INDEX).is_file() else []


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map; copy the file again")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise ValueError(
                f"{index} names {name!r}, expected the name of a file beside it; copy the file "
                "again, and do not use the folder if its source is not to be trusted"
            )
    return [index.parent / name for name in sorted(set(shards.values()))]


def _pickled_shapes(folder: Path) -> dict[str, Shape]:
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no weights: expected {WEIGHTS}, or shards with {INDEX}"
        )
    return {name: tuple(one.shape) for file in files for name, one in read_tensors(file).items()}


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
    """Check that an adapter folder has its weights, that they are whole, and what it asks for.

    Raises:
        FileNotFoundError: No weights.
        ValueError: A file is truncated or damaged, or the adapter is of a kind that is not read.
    """
    check_sealed_weights(folder)
    file, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if file.is_file():
        shapes = read_header(file)
    elif pickled.is_file():
        shapes = {name: tuple(one.shape) for name, one in read_tensors(pickled).items()}
    else:
        raise FileNotFoundError(
            f"{folder} holds no adapter weights: expected {file.name}; copy or train it again"
        )
    config = folder / ADAPTER_CONFIG
    fields = read_json(config)
    if (kind := fields.get("peft_type")) != "LORA":
        raise ValueError(f"{config}: peft_type is {kind!r}; only LORA adapters are read")
    for name in _REFUSED_ADAPTER_FIELDS:
        if fields.get(name) is not None:
            raise ValueError(
                f"{config} has a {name}, which is not read: it would open other files or make "
                "layers that are not stored; train the adapter without it"
            )
    _check_ranks(config, fields, shapes)


def _check_ranks(config: Path, fields: dict[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Refuse ranks that no stored weight has: by them memory would be taken."""
    ranks, alphas = (
        {name: fields.get(name), **patterns}
        if isinstance(patterns := fields.get(f"{short}_pattern") or {}, dict)
        else {f"{short}_pattern": patterns}
        for short, name in (("rank", "r"), ("alpha", "lora_alpha"))
    )
    first = ("lora_A", "lora_embedding_A")
    stored = [one[0] for name, one in shapes.items() if any(part in name for part in first) and one]
    largest = max(stored, default=0)
    for name, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
            raise ValueError(
                f"{config}: {name} is {rank!r}, but the largest rank of the stored weights is "
                f"{largest}; the two files belong to different adapters"
            )
    for name, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
            raise ValueError(f"{config}: {name} is {alpha!r}, expected a number; copy it again")


def read_header(file: Path) -> dict[str, Shape]:
    """Read names and shapes of a safetensors file; the library checks that they fill it exactly."""
    shapes = {}
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # the reader is no mapping
                part = weights.get_slice(name)
                if (kind := part.get_dtype()) not in _TYPES:
                    raise ValueError(
                        f"{file} holds {name!r} of type {kind}, expected one of "
                        f"{', '.join(_TYPES)}; save the weights in one of these"
                    )
                shapes[name] = tuple(part.get_shape())
    except SafetensorError as error:
        raise ValueError(
            f"{file} is damaged or cut off ({error}); copy or download it again"
        ) from error
    return shapes
