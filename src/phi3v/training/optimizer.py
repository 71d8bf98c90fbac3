"""The optimizer: its groups by part, decay and adapter matrix, and the bytes of its states."""

import importlib.util
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.parts import SEPARATORS, learning_rate_of, own_parameters


def parameter_groups(
    model: nn.Module, training: Phi3VTrainingArguments, *, loraplus_lr_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into optimizer groups.

    Norms, biases and separators get no weight decay.

    Args:
        model: Model whose parameters are frozen or not.
        training: Gives the learning rates and the weight decay.
        loraplus_lr_ratio: Factor on the learning rate of the B matrices (LoRA+).

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``names``.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter, part in own_parameters(model):
        if not parameter.requires_grad:
            continue
        rate = learning_rate_of(part, training)
        if loraplus_lr_ratio is not None and ("lora_B" in name or "lora_embedding_B" in name):
            rate *= loraplus_lr_ratio
        decay = 0.0 if _spared(name, parameter, part) else training.weight_decay
        group = groups.setdefault(
            (rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    # The log shows the first group's rate: that of the language model, where it trains.
    return sorted(groups.values(), key=lambda group: group["lr"] != training.learning_rate)


def _spared(name: str, parameter: Any, part: str) -> bool:
    # Under ZeRO-3 the visible shape is empty; the full one is kept beside it.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return part == SEPARATORS or name.endswith(".bias") or len(shape) < 2


def make_optimizer(
    model: nn.Module, training: Phi3VTrainingArguments, *, loraplus_lr_ratio: float | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer of a run over groups by part; see ``parameter_groups``.

    The states of embeddings stay float32 beside 8-bit ones of bitsandbytes, as its makers advise
    and the library's trainer has it: gradients of frequent and of rare tokens lie far apart.
    """
    # Not at the top: a plan of the memory needs no trainer.
    from transformers import Trainer

    name = name_of(training)
    if name.startswith("paged_ademamix") and training.device.type == "cpu":
        unpaged = name.removeprefix("paged_").removesuffix("_32bit")
        raise ValueError(f"--optim {name} needs a GPU; {unpaged} works without")
    groups = parameter_groups(model, training, loraplus_lr_ratio=loraplus_lr_ratio)
    for group in groups:
        del group["names"]
    bare: Any = model
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(training, bare)
    if options.get("optim_bits") == 8:
        from bitsandbytes.optim import GlobalOptimManager

        manager = GlobalOptimManager.get_instance()
        for weight in embeddings(model):
            # By id: an override by module would hold the model for ever. The id is forgotten with
            # the parameter, as another one may get it.
            manager.override_config(weight, "optim_bits", 32)
            weakref.finalize(weight, manager.pid2config.pop, id(weight), None)
    return optimizer_class(groups, **options)


def embeddings(model: nn.Module) -> list[torch.Tensor]:
    """List the weights of all embeddings, of tokens and of positions."""
    return [one.weight for one in model.modules() if isinstance(one, nn.Embedding)]


class States(NamedTuple):
    """What an optimizer keeps.

    Attributes:
        values: How many for each trained number.
        bits: Size of a value.
        package: What it needs beside PyTorch, by the name of its module; empty for nothing.
    """

    values: int
    bits: int = 32
    package: str = ""


_BNB, _AO = "bitsandbytes", "torchao"
# By the library's names of optimizers.
STATES = {
    "adamw_torch": States(2),
    "adamw_torch_fused": States(2),
    "adagrad": States(1),
    "rmsprop": States(1),
    "sgd": States(0),
    "adafactor": States(1),
    "adamw_bnb_8bit": States(2, 8, _BNB),
    "adamw_8bit": States(2, 8, _BNB),
    "paged_adamw_32bit": States(2, 32, _BNB),
    "paged_adamw_8bit": States(2, 8, _BNB),
    "ademamix": States(3, 32, _BNB),
    "ademamix_8bit": States(3, 8, _BNB),
    "paged_ademamix_32bit": States(3, 32, _BNB),
    "paged_ademamix_8bit": States(3, 8, _BNB),
    "lion_32bit": States(1, 32, _BNB),
    "lion_8bit": States(1, 8, _BNB),
    "paged_lion_32bit": States(1, 32, _BNB),
    "paged_lion_8bit": States(1, 8, _BNB),
    "rmsprop_bnb": States(1, 32, _BNB),
    "rmsprop_bnb_8bit": States(1, 8, _BNB),
    "rmsprop_bnb_32bit": States(1, 32, _BNB),
    "adamw_torch_8bit": States(2, 8, _AO),
    "adamw_torch_4bit": States(2, 4, _AO),
}
# Numbers that share a float32 scale, and the fewest of a parameter that are quantised.
BLOCK, FEWEST = 256, 4096


def state_bytes(model: nn.Module, training: Phi3VTrainingArguments) -> int:
    """Count the bytes of the optimizer's states of all that trains.

    Paged states may leave the GPU; they are counted all the same. An optimizer that is not listed
    counts as AdamW. Under DeepSpeed, which quantises everything, 8-bit states take a little less.
    """
    name = name_of(training)
    states = STATES.get(name, STATES["adamw_torch"])
    momentum = name == "sgd" and "momentum" in (training.optim_args or "")
    states = states._replace(values=states.values + momentum)
    wide = {id(one) for one in embeddings(model)} if states.package == _BNB else set()
    return sum(
        _bytes_of(name, states, getattr(one, "ds_shape", one.shape), id(one) in wide)
        for one in model.parameters()
        if one.requires_grad
    )


def _bytes_of(name: str, states: States, shape: Sequence[int], stays_wide: bool) -> int:
    count = math.prod(shape)
    if name == "adafactor" and len(shape) > 1:
        # Means of rows and of columns.
        return 4 * (count // shape[-1] + count // shape[-2])
    blocks = -(-count // BLOCK)
    is_odd = states.package == _AO and count % BLOCK > 0
    if states.bits == 32 or count < FEWEST or stays_wide or is_odd:
        return 4 * states.values * count
    return states.values * (count * states.bits // 8 + 4 * blocks)


def name_of(training: Phi3VTrainingArguments) -> str:
    """Return the library's name of the optimizer."""
    return getattr(training.optim, "value", str(training.optim))


# Modules that optimizers need, with the names that they are installed by.
_PACKAGES = {
    "xla": ("torch_xla", "torch_xla"),
    "npu": ("torch_npu", "torch_npu"),
    "anyprecision": ("torchdistx", "torchdistx"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
}


def check_optimizer(training: Phi3VTrainingArguments) -> None:
    """Refuse an optimizer that is not installed, or that would lose the groups by part.

    Raises:
        ValueError: It is one of these; the message names the way out.
    """
    name = name_of(training)
    if any(word in name for word in ("galore", "apollo", "lomo")):
        raise ValueError(
            f"--optim {name} sorts parameters itself, so learning rates and weight decay of parts "
            "would be lost; adamw_bnb_8bit, adafactor and --lora_enable save memory, too"
        )
    module = package = STATES[name].package if name in STATES else ""
    for word, names in _PACKAGES.items():
        if word in name:
            module, package = names
    if module and importlib.util.find_spec(module) is None:
        instead = "adamw_bnb_8bit, or " if module == _AO else ""
        raise ValueError(
            f"--optim {name} needs {package}, which is not installed: pip install {package}; or "
            f"take {instead}adamw_torch_fused, which needs nothing more"
        )
