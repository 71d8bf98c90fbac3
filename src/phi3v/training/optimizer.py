"""Parameter groups: every trainable parameter in exactly one, by part, decay and adapter matrix."""

from typing import Any

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


# Bytes of the states of one trained number, by the library's names of optimizers.
STATE_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "ademamix": 12,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "sgd": 0,
}


def state_bytes(training: Phi3VTrainingArguments) -> int:
    """Return the bytes of optimizer states for each trained number.

    Paged states may leave the GPU; they are counted all the same. An optimizer that is not listed
    counts as AdamW.
    """
    return STATE_BYTES.get(getattr(training.optim, "value", str(training.optim)), 8)
