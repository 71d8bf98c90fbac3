"""PyTorch's compiler where it pays: the elementwise steps alone, or whole layers.

Lengths, crops and packs change from batch to batch, and nothing is compiled again for them: the
attention, whose segments differ in every pack, stays outside, and the second length that is met
makes the number of tokens a variable.
"""

import functools
import logging
from typing import Any

import torch
from torch import nn

from phi3v.model.clip import CLIPMLP, CLIPEncoderLayer
from phi3v.model.decoder import (
    Phi3VAttention,
    Phi3VDecoderLayer,
    Phi3VMLP,
    Phi3VRMSNorm,
)
from phi3v.model.elementwise import plain_quick_gelu, plain_rms_norm, plain_swiglu
from phi3v.model.rotary import apply_rotary

logger = logging.getLogger(__name__)

_MOST_CODES = 64


@functools.cache
def _compiled(function: Any, backend: str) -> Any:
    """Compile a function once for all layers and models."""
    return _compile(function, backend=backend)


def _compile(function: Any, **options: Any) -> Any:
    """Compile with room for the codes that a run can need.

    One or several rows, one place or several, with gradients or without, in training, evaluation
    and generation are about twenty; beyond its limit of eight the compiler would give up.
    """
    config = torch._dynamo.config
    # Its name in torch 2.6, and another name of `recompile_limit` since.
    config.cache_size_limit = max(config.cache_size_limit, _MOST_CODES)
    return torch.compile(function, **options)


def fuse_elementwise(model: nn.Module, backend: str = "inductor") -> None:
    """Run each norm, gate and rotation as one kernel, forward and backward.

    Results are equal within the rounding of the type: in 16 bits, steps between are not rounded.

    Args:
        model: Bare model, or one wrapped by PEFT.
        backend: Name of the compiler.
    """
    for module in model.modules():
        if isinstance(module, Phi3VRMSNorm):
            module.apply_norm = _compiled(plain_rms_norm, backend)
        elif isinstance(module, Phi3VMLP):
            module.activate = _compiled(plain_swiglu, backend)
        elif isinstance(module, CLIPMLP):
            module.activate = _compiled(plain_quick_gelu, backend)
        elif isinstance(module, Phi3VAttention):
            module.rotate = _compiled(apply_rotary, backend)


def compile_layers(model: nn.Module, backend: str = "inductor", mode: str | None = None) -> None:
    """Compile the layers of decoder and tower, one code for all that are alike.

    A decoder layer is compiled in front of its attention and behind it.

    Args:
        model: Bare model, or one wrapped by PEFT.
        backend: Name of the compiler.
        mode: Mode of the compiler, or None.
    """
    for module in model.modules():
        if isinstance(module, CLIPEncoderLayer):
            module.compile(backend=backend, mode=mode)
        elif isinstance(module, Phi3VAttention):
            _compile_method(module, "project", backend, mode)
        elif isinstance(module, Phi3VDecoderLayer):
            module.input_layernorm.apply_norm = _compiled(plain_rms_norm, backend)
            _compile_method(module, "finish", backend, mode)


def _compile_method(module: nn.Module, name: str, backend: str, mode: str | None) -> None:
    setattr(module, name, _compile(getattr(module, name), backend=backend, mode=mode))


def can_fuse(device: torch.device) -> bool:
    """Try the compiler on a small step; it needs Triton and a C compiler beside the GPU."""
    states = torch.ones(1, 2, 64, device=device, requires_grad=True)
    weight = torch.ones(64, device=device)
    try:
        _compiled(plain_rms_norm, "inductor")(states, weight, 1e-5).sum().backward()
    # Whatever the compiler lacks on this machine, the plain steps do the same.
    except Exception as error:
        logger.warning("elementwise steps are not fused: %s", str(error).strip().split("\n")[0])
        return False
    return True
