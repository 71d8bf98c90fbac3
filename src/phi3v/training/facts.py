"""What a checkpoint was made with, and whether a run that goes on from it is still the same."""

import json
import logging
from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from phi3v import __version__
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.records import RawRecords
from phi3v.model.files import read_json
from phi3v.training.flags import RunArguments

logger = logging.getLogger(__name__)

FACTS_FILE = "run_facts.json"
_FORMAT = 1
# Records that the digest of the data reads, evenly spread; all of a file that has no more.
_MOST_RECORDS = 4096
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes")

# What decides the order of the records, the form of the model, or what the optimizer goes on with.
_DECISIVE = (
    *("seed", "data_seed", "per_device_train_batch_size", "train_sampling_strategy"),
    *("dataloader_drop_last", "packing", "pack_tokens", "share_images", "max_branches"),
    *("max_seq_length", "num_crops", "max_num_frames", "on_bad_record", "exif_orientation"),
    *("streaming", "shuffle_buffer", "bits", "quant_type", "double_quant", "freeze_vision_tower"),
    *("freeze_llm", "tune_img_projector", "lora_enable", "vision_lora", "lora_rank", "lora_alpha"),
    *("lora_dropout", "lora_bias", "lora_preset", "lora_namespan_exclude", "num_lora_modules"),
    *("use_dora", "use_rslora", "lora_init", "loraplus_lr_ratio", "bf16", "fp16", "optim"),
    *("optim_args", "learning_rate", "vision_lr", "projector_lr", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "neftune_noise_alpha"),
)
# These may grow: the run gets longer.
_LENGTH = ("max_steps", "num_train_epochs")


def settle_facts(arguments: RunArguments, train_set: Any, checkpoint: str | None) -> dict[str, Any]:
    """Collect what checkpoints say about the run; refuse to go on from one of another run.

    Args:
        arguments: All arguments, as they are used.
        train_set: Training set; a streamed one has no records that could be compared.
        checkpoint: Checkpoint that the run goes on from, if it does.

    Raises:
        ValueError: The checkpoint is of a run with other data or flags.
    """
    records = train_set.raw if isinstance(train_set, SupervisedDataset) else None
    facts = gather_facts(arguments, records)
    if checkpoint is not None:
        print(f"resuming from {checkpoint}", flush=True)
        allow = arguments.training.resume_with_changes
        for hint in check_same_run(Path(checkpoint), facts, allow_changes=allow):
            logger.warning(hint)
    return facts


def gather_facts(arguments: RunArguments, records: RawRecords | None) -> dict[str, Any]:
    """Collect what a run is made of.

    Args:
        arguments: All arguments, as they are used.
        records: The training records; None where they are streamed.
    """
    training = arguments.training
    sharded = training.deepspeed or training.is_under_fsdp
    return {
        "format": _FORMAT,
        "versions": {"phi3v": __version__} | {name: _version(name) for name in _PACKAGES},
        "data": None if records is None else digest_of_records(records),
        "processes": training.world_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "dataloader_num_workers": training.dataloader_num_workers,
        "is_sharded": bool(sharded),
        "arguments": {
            name: _plain(getattr(group, name))
            for group in arguments[:4]
            for name in (*_DECISIVE, *_LENGTH)
            if name in type(group).__dataclass_fields__
        },
    }


def digest_of_records(records: RawRecords) -> str:
    """Name the contents of a data set, wherever it lies and whenever it was copied there."""
    step = max(1, len(records) / _MOST_RECORDS)
    digest = blake2b(str(len(records)).encode(), digest_size=16)
    for place in range(min(len(records), _MOST_RECORDS)):
        try:
            content = json.dumps(records[int(place * step)], sort_keys=True, default=repr)
        except ValueError as error:
            content = f"unreadable: {type(error).__name__}"
        digest.update(content.encode())
    return f"{len(records)} records, digest {digest.hexdigest()}"


def compare_facts(checkpoint: Path, now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare a checkpoint's facts with those of the run that is to go on from it.

    Returns:
        What makes it another run, and what may alter the last digits.
    """
    file = checkpoint / FACTS_FILE
    if not file.is_file():
        return [], [f"{checkpoint.name} has no {FACTS_FILE}; data and flags cannot be compared"]
    then = read_json(file)
    if then.get("format") != _FORMAT:
        return [f"{file} is of another version of phi3v (format {then.get('format')})"], []
    changes = []
    if then["data"] != now["data"]:
        changes.append(f"the training records: {then['data']}; now {now['data']}")
    old, new = then["arguments"], now["arguments"]
    changes += _differences(old, new, _DECISIVE)
    hints = [
        f"{text}; learning rates follow the new length" for text in _differences(old, new, _LENGTH)
    ]
    more, remark = _compare_processes(then, now)
    versions = [
        f"{name} {then['versions'].get(name)} is now {value}"
        for name, value in now["versions"].items()
        if then["versions"].get(name) != value
    ]
    if versions:
        hints.append(f"other versions may alter the last digits: {', '.join(versions)}")
    return changes + more, hints + remark


def _differences(old: dict[str, Any], new: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [
        f"--{name}: {old[name]}; now {new[name]}"
        for name in names
        if name in old and name in new and old[name] != new[name]
    ]


def _compare_processes(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Allow another number of processes where every step still has the same batches."""
    old, new = then["processes"], now["processes"]
    steps = "gradient_accumulation_steps"
    flags = now["arguments"]
    if flags["streaming"]:
        names = ("processes", "dataloader_num_workers", steps)
        return _differences(then, now, names), []
    if old == new:
        return _differences(then, now, [steps]), []
    text = f"{old} processes; now {new}"
    if then["is_sharded"] or now["is_sharded"]:
        return [f"{text}: DeepSpeed and FSDP keep the optimizer in as many parts"], []
    if flags["packing"] or flags["train_sampling_strategy"] != "random":
        return [f"{text}: packs and groups by length are made for that many"], []
    batches = old * then[steps]
    if new * now[steps] == batches:
        return [], [f"{text}: the steps have the same records, but dropout draws anew"]
    way = f"; --{steps} {batches // new} makes the steps equal" if batches % new == 0 else ""
    return [f"{text}, so a step has other records{way}"], []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    value = value.value if isinstance(value, Enum) else value
    return json.loads(json.dumps(value, default=str))


def check_same_run(checkpoint: Path, now: dict[str, Any], *, allow_changes: bool) -> list[str]:
    """Refuse to go on from a checkpoint with other data or flags.

    Returns:
        Hints.

    Raises:
        ValueError: It would be another run; the message lists the changes.
    """
    changes, hints = compare_facts(checkpoint, now)
    if changes and not allow_changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"{checkpoint} belongs to a run with other data or flags:\n  {listed}\nrestore them; "
            "or go on all the same by --resume_with_changes True (learning rates and optimizer "
            "stay those of the checkpoint); or begin a new run in another --output_dir, from the "
            f"weights in {checkpoint.name}: --lora_weight_path of an adapter, --model_id of a "
            "whole model"
        )
    return hints + [f"--resume_with_changes: {text}" for text in changes]
