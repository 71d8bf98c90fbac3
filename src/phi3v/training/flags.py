"""Reading the command line: YAML files, old flag names, the launcher's own words."""

import difflib
import json
import os
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser

from phi3v.data.processes import world_size
from phi3v.training.arguments import (
    DataArguments,
    LoraArguments,
    ModelArguments,
    Phi3VTrainingArguments,
)
from phi3v.training.processes import connect_for_deepspeed
from phi3v.training.sharding import DEFAULT_CONFIG, read_config, settle_config, zero_stage

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
_NOT_KEPT = {"resume_from_checkpoint", "overwrite_output_dir", "resume_with_changes"}
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


def parse_arguments(argv: list[str], prog: str = "phi3v train") -> tuple[RunArguments, list[str]]:
    """Read flags, after those of a YAML file when the first word names one.

    Args:
        argv: Words of the command line. ``run.yaml --learning_rate 1e-4``: the flag wins.
        prog: The command that complains about them.

    Returns:
        The arguments, and one message for every old flag that was translated.

    Raises:
        ValueError: The file is no flat mapping of fields, or a flag is unknown.
        SystemExit: A flag has no value or an impossible one (argparse).
    """
    # The deepspeed launcher puts its own word first.
    words = [word for word in argv if not word.startswith("--local_rank=")]
    by_launcher = "CROSS_RANK" in os.environ or len(words) < len(argv)
    if words and words[0].endswith((".yaml", ".yml", ".json")):
        words = yaml_flags(Path(words[0])) + words[1:]
    words, messages = translate_old_flags(words)
    given = frozenset(_values(words))
    if by_launcher and "deepspeed" not in given:
        # As the seed's launcher line had it.
        words += ["--deepspeed", DEFAULT_CONFIG]
    if "eval_data_path" in given and "eval_strategy" not in given:
        words += ["--eval_strategy", "epoch"]
    scores_answers = _is_true(_values(words).get("eval_generate", ["no"]))
    if scores_answers and "eval_on_start" not in given:
        words += ["--eval_on_start", "True"]
    words, more = _settle_processes(words)
    messages += more
    groups: Any = (ModelArguments, LoraArguments, DataArguments, Phi3VTrainingArguments)
    parser = HfArgumentParser(
        groups,
        prog=prog,
        description="Fine-tune a checkpoint. A YAML file may stand first; flags win over it.",
    )
    # An abbreviation would silently change its meaning when a flag is added.
    parser.allow_abbrev = False
    *parsed, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown[0], known, n=1)
        advice = f"did you mean {close[0]}?" if close else "phi3v train --help lists all flags"
        raise ValueError(f"unknown word {unknown[0]!r}; {advice}")
    model, lora, data, training = parsed
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


def _settle_processes(words: list[str]) -> tuple[list[str], list[str]]:
    """Add what a run on several processes, or by DeepSpeed, needs; connect where it must be early.

    Returns:
        The words to parse and one message for each change.

    Raises:
        ValueError: The DeepSpeed configuration is unreadable or cannot do what the flags ask for.
        FileNotFoundError: There is no such configuration.
    """
    import torch

    given = _values(words)
    messages: list[str] = []
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and "use_cpu" not in given:
        # The library would take several processes for one, and refuse bfloat16.
        words = [*words, "--use_cpu", "True"]
        messages.append(f"no GPU found: training on the CPU, processes: {world_size()}")
    if not (config := (given.get("deepspeed") or [""])[0]):
        return words, messages
    settled, more = settle_config(config)
    bits = (given.get("bits") or ["16"])[0]
    if bits != "16" and zero_stage(read_config(settled)) == 3:
        raise ValueError(
            f"--bits {bits} contradicts --deepspeed {config}: ZeRO-3 cannot shard a quantised "
            f"base; use {DEFAULT_CONFIG}, or torchrun without --deepspeed"
        )
    connect_for_deepspeed(on_cpu=on_cpu or ("use_cpu" in given and _is_true(given["use_cpu"])))
    return [*words, "--deepspeed", settled], messages + more


def _values(words: list[str]) -> dict[str, list[str]]:
    """Return the value of every flag; the last one wins, as in the parser."""
    return dict(_take_flag(words, index)[:2] for index in range(len(words)))


def as_yaml(arguments: RunArguments) -> str:
    """Write the flags that were given, readable by ``parse_arguments``.

    Those that say what to do with the output folder of this one run are left out.
    """
    fields: dict[str, Any] = {}
    for group in arguments[:4]:
        own = set(type(group).__dataclass_fields__) - _NOT_KEPT
        for name in arguments.given & own:
            value = getattr(group, name)
            if name == "report_to" and not value:
                # The library turns "none" into an empty list, which no flag can say.
                value = "none"
            if isinstance(value, str | int | float | bool | list | dict):
                fields[name] = value.value if isinstance(value, Enum) else value
    return yaml.safe_dump(fields, sort_keys=True, allow_unicode=True)
