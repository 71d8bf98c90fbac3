"""The elementwise work of the layers, each with a backward pass that keeps only its input.

Autograd would keep several intermediate results of each of them, as large as the activations of the
matrix products between them. Here they are made again, which costs no product. Gradients are those
of autograd to the last rounding.

Letters: H width of the input, F inner width of an MLP.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def plain_rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute ``rms_norm`` under autograd, for a compiler that fuses it."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(states.dtype)


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """Compute ``swiglu`` under autograd."""
    gate, up = gate_up.chunk(2, dim=-1)
    return up * functional.silu(gate)


def plain_quick_gelu(inner: Tensor) -> Tensor:
    """Compute ``quick_gelu`` under autograd."""
    return inner * torch.sigmoid(1.702 * inner)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(states: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * inverse).to(states.dtype), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, Tensor | None, None]:
        states, weight, inverse = ctx.saved_tensors
        normal = states.to(inverse.dtype) * inverse
        states_grad = weight_grad = None
        if ctx.needs_input_grad[1]:
            product = grad * normal.to(states.dtype)
            weight_grad = product.flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            wide = (grad * weight).to(states.dtype).to(inverse.dtype)
            along = (wide * normal).mean(-1, keepdim=True)
            states_grad = ((wide - normal * along) * inverse).to(states.dtype)
        return states_grad, weight_grad, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(gate_up: Tensor) -> Tensor:
        return plain_swiglu(gate_up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        # Written in place: here a step keeps most, and these are its widest tensors.
        result = torch.empty_like(gate_up)
        gate_grad, up_grad = result.chunk(2, dim=-1)
        torch.mul(grad, up, out=gate_grad)
        torch.ops.aten.silu_backward.grad_input(gate_grad, gate, grad_input=gate_grad)
        torch.ops.aten.silu.out(gate, out=up_grad).mul_(grad)
        return result


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(inner: Tensor) -> Tensor:
        return plain_quick_gelu(inner)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inner,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * inner)
        return grad * gate + 1.702 * torch.ops.aten.sigmoid_backward(grad * inner, gate)


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm by the root of the mean square, in float32, rounded before the weight is applied.

    Args:
        states: (..., H).
        weight: (H,).
        eps: Added to the mean square.

    Returns:
        (..., H).

    Source:
        Published modelling code.
    """
    return _RMSNorm.apply(states, weight, eps)[0]


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate one half by the SiLU of the other; (..., 2F), gate first, to (..., F)."""
    return _SwiGLU.apply(gate_up)


def quick_gelu(inner: Tensor) -> Tensor:
    """Multiply by the sigmoid of 1.702 times the same; (..., F) to (..., F)."""
    return _QuickGELU.apply(inner)
