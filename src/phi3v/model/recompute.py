"""What a layer keeps for its backward pass, and what it makes again.

Three regimes: ``none`` makes nothing again but elementwise work inside single steps; ``selective``
keeps matrix products and attention outputs of a layer and makes the elementwise work between them
again; ``full`` keeps the input of a layer only. All give the same gradients.
"""

import functools
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers.modeling_layers import GradientCheckpointingLayer

Regime = Literal["none", "selective", "full"]

_PRODUCTS = ("mm", "addmm", "bmm")
# A product this much narrower inside than outside is cheaper to make again than to keep: the second
# matrix of an adapter.
NARROW = 8


def set_regime(model: nn.Module, regime: Regime) -> None:
    """Choose what all layers of decoder and tower keep.

    Unlike the library's switch this does not make the input of the first layer need a gradient, so
    that the backward pass still ends at the first trained parameter.

    Args:
        model: Bare model, or one wrapped by PEFT.
        regime: One of the three.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if regime == "selective":
        policy = functools.partial(_policy, dispensable=_last_products(model))
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = regime != "none"
            # The library's name for what a layer runs through then.
            function: Any = functools.partial(checkpoint, **options)
            module._gradient_checkpointing_func = function


def _last_products(model: nn.Module) -> frozenset[tuple[int, int]]:
    """Find the inner and outer widths of the products that end a layer.

    No gradient needs their output. Only where they carry an adapter must it be kept: making the
    adapter's input again would make the product again.
    """
    return frozenset(
        (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if name.endswith(("mlp.down_proj", "mlp.fc2")) and type(module) is nn.Linear
    )


def _policy(
    _: Any, op: Any, *args: Any, dispensable: frozenset[tuple[int, int]], **__: Any
) -> CheckpointPolicy:
    short = str(op).split(".")[1]
    keep = "attention" in short or "flash_attn" in short
    if short in _PRODUCTS:
        widths = args[-2].shape[-1], args[-1].shape[-1]
        keep = widths[0] * NARROW >= widths[1] and widths not in dispensable
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
