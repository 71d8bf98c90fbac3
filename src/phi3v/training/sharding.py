"""The DeepSpeed configuration: found, read, and freed of what would override the flags."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT_CONFIG = "scripts/zero2.json"
# The flags and their learning rates per part say this; a block here would replace them all.
_BLOCKS_OF_FLAGS = ("optimizer", "scheduler")


def find_config(name: str) -> Path:
    """Find a DeepSpeed configuration: as named, or from the checkout's root.

    Raises:
        FileNotFoundError: There is no such file.
    """
    for file in (Path(name), CHECKOUT / name):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"--deepspeed {name}: no such file; the checkout has {DEFAULT_CONFIG}, scripts/zero3.json "
        "and scripts/zero3_offload.json"
    )


def read_config(value: str | dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed configuration from a file, or from JSON text that starts with a brace.

    The library's arguments hold the object itself where the flag held its text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no JSON object.
    """
    if isinstance(value, dict):
        return value
    is_text = value.lstrip().startswith("{")
    try:
        text = value if is_text else find_config(value).read_text(encoding="utf-8")
        config = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--deepspeed {value} is not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"--deepspeed {value} must hold a JSON object, found {type(config).__name__}"
        )
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """Return the ZeRO stage, 0 to 3."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def settle_config(value: str) -> tuple[str, list[str]]:
    """Make a configuration one under which the flags hold and the result can be loaded.

    Args:
        value: What ``--deepspeed`` says.

    Returns:
        The file, or JSON text where something had to change, and a message for every change.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is unreadable, or DeepSpeed is not installed.
    """
    config = read_config(value)
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"--deepspeed {value} needs DeepSpeed, which is not installed: pip install deepspeed; "
            "or leave the flag out and use torchrun"
        )
    messages = []
    if dropped := [name for name in _BLOCKS_OF_FLAGS if config.pop(name, None) is not None]:
        messages.append(
            f"--deepspeed {value}: its {' and '.join(dropped)} block is left out; the flags say "
            "optimizer, schedule and the learning rate of every part"
        )
    gather = "stage3_gather_16bit_weights_on_model_save"
    if zero_stage(config) == 3 and not config["zero_optimization"].get(gather):
        config["zero_optimization"][gather] = True
        messages.append(f"--deepspeed {value}: {gather} is set, else no model could be saved")
    if not messages:
        return value if value.lstrip().startswith("{") else str(find_config(value)), []
    return json.dumps(config), messages


def frozen_copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect the frozen parameters of modules that are saved as a whole beside an adapter.

    DeepSpeed gathers only what trains, but a saved vision tower is to hold its unused layer too.
    All processes must call this.

    Returns:
        Full values by name; nothing where ZeRO-3 does not shard the model.
    """
    frozen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".modules_to_save." in name
        and not parameter.requires_grad
        and hasattr(parameter, "ds_id")
    }
    if not frozen:
        return {}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(frozen.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in frozen.items()}


@contextmanager
def whole_model(engine: Any) -> Iterator[None]:
    """Gather a model that ZeRO-3 shards on every process, and keep DeepSpeed from sharding it.

    Generation calls the model under its adapters, which DeepSpeed's fetching in the order of the
    last forward pass does not survive. All processes must enter and leave together. Does nothing
    with other models.

    Args:
        engine: The model as the trainer wraps it.
    """
    offload = getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
    if offload is None:
        yield
        return
    import deepspeed

    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(engine.module)
