"""Reading the command line: YAML files, old flag names, the launcher's own words."""

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser

from phi3v.training.arguments import (
    DataArguments,
    LoraArguments,
    ModelArguments,
    Phi3VTrainingArguments,
)

# Flags of older releases: what they are called now, or None where nothing is left to set.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "dtype": None,
    "lazy_preprocess": None,
    "cache_dir": None,
    "save_safetensors": None,
    "half_precision_backend": None,
    "fp16_backend": None,
    "fp16_opt_level": None,
    "include_tokens_per_second": None,
    "jit_mode_eval": None,
    "use_ipex": None,
    "ray_scope": None,
    "torchdynamo": None,
    "past_index": None,
}
_WHY_DROPPED = {
    "lazy_preprocess": "records are always read lazily",
    "cache_dir": "set HF_HOME to choose the cache folder",
    "save_safetensors": "checkpoints are always safetensors",
}


class RunArguments(NamedTuple):
    """All arguments of one run."""

    model: ModelArguments
    lora: LoraArguments
    data: DataArguments
    training: Phi3VTrainingArguments
    given: frozenset[str] = frozenset()


def parse_arguments(argv: list[str]) -> tuple[RunArguments, list[str]]:
    """Read flags, after those of a YAML file when the first word names one.

    Args:
        argv: Words of the command line. ``run.yaml --learning_rate 1e-4``: the flag wins.

    Returns:
        The arguments, and one message for every old flag that was translated.

    Raises:
        ValueError: The file is no flat mapping of fields.
        SystemExit: A flag is unknown or misses its value (argparse).
    """
    words = list(argv)
    if words and words[0].endswith((".yaml", ".yml", ".json")):
        words = yaml_flags(Path(words[0])) + words[1:]
    words, messages = translate_old_flags(words)
    words = _with_launcher_defaults(words)
    groups: Any = (ModelArguments, LoraArguments, DataArguments, Phi3VTrainingArguments)
    parser = HfArgumentParser(
        groups,
        prog="phi3v train",
        description="Fine-tune a checkpoint. A YAML file may stand first; flags win over it.",
    )
    # An abbreviation would silently change its meaning when a flag is added.
    parser.allow_abbrev = False
    model, lora, data, training = parser.parse_args_into_dataclasses(args=words)
    given = frozenset(_take_flag(words, index)[0] for index in range(len(words)))
    return RunArguments(model, lora, data, training, given), messages


def yaml_flags(file: Path) -> list[str]:
    """Turn a flat YAML or JSON mapping into flags.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no mapping, or a field is nested where a flag takes one value.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable as YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"{file} must hold a mapping of fields, such as learning_rate: 1e-4; found "
            f"{type(fields).__name__}"
        )
    words: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, dict):
            words += [f"--{name}", json.dumps(value)]
        elif isinstance(value, list) and name != "lora_namespan_exclude":
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def translate_old_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """Replace flags that the library renamed or dropped.

    Returns:
        The words to parse and one message for each change.
    """
    result: list[str] = []
    messages: list[str] = []
    index = 0
    while index < len(words):
        name, value, used = _take_flag(words, index)
        index += used
        if name in RENAMED:
            new = RENAMED[name]
            if new is None:
                why = _WHY_DROPPED.get(name, "the library has no such setting any more")
                messages.append(f"--{name} has no effect: {why}")
                continue
            messages.append(f"--{name} is called --{new} now")
            result += [f"--{new}", *value]
        elif name == "group_by_length":
            messages.append("--group_by_length is called --train_sampling_strategy now")
            if _is_true(value):
                result += ["--train_sampling_strategy", "group_by_length"]
        elif name == "tf32" and _is_true(value) and not _has_tf32():
            messages.append("--tf32 is ignored: it needs an NVIDIA GPU of the Ampere kind or newer")
        else:
            result += words[index - used : index]
    return result, messages


def _take_flag(words: list[str], index: int) -> tuple[str, list[str], int]:
    """Split ``--name value`` or ``--name=value`` off; (name, values, number of words)."""
    word = words[index]
    if not word.startswith("--"):
        return "", [], 1
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if equals:
        return name, [value], 1
    following = words[index + 1 : index + 2]
    if following and not following[0].startswith("--"):
        return name, following, 2
    return name, [], 1


def _is_true(value: list[str]) -> bool:
    return not value or value[0].lower() in ("true", "1", "yes", "t", "y")


def _has_tf32() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8


def _with_launcher_defaults(words: list[str]) -> list[str]:
    """Default to ``scripts/zero2.json`` under the deepspeed launcher, as the seed does."""
    names = {_take_flag(words, index)[0] for index in range(len(words))}
    by_deepspeed = "local_rank" in names and "TORCHELASTIC_RUN_ID" not in os.environ
    if not by_deepspeed or "deepspeed" in names:
        return words
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (file := root / "scripts" / "zero2.json").is_file():
            return [*words, "--deepspeed", str(file)]
    raise ValueError(
        "started by the deepspeed launcher without --deepspeed, and there is no scripts/zero2.json "
        "here; name a DeepSpeed configuration"
    )


def as_yaml(arguments: RunArguments) -> str:
    """Write the flags that were given, readable by ``parse_arguments``."""
    fields: dict[str, Any] = {}
    for group in arguments[:4]:
        for name in arguments.given & set(type(group).__dataclass_fields__):
            value = getattr(group, name)
            if isinstance(value, str | int | float | bool | list | dict):
                fields[name] = value.value if isinstance(value, Enum) else value
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=True)
