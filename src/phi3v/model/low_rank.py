"""The product of an adapter, added to that of its base without a copy.

An adapter's wide product, its scaled copy and the sum would each be as large as the base's product.
"""

from typing import Any

import torch
from torch import Tensor


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(base: Tensor, low: Tensor, weight: Tensor, scaling: float) -> Tensor:
        rows = base.view(-1, base.shape[-1])
        torch.addmm(rows, low.flatten(0, -2), weight.t(), alpha=scaling, out=rows)
        return base

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        base, low, weight, ctx.scaling = inputs
        ctx.mark_dirty(base)
        ctx.save_for_backward(low, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        low, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        low_grad = weight_grad = None
        if ctx.needs_input_grad[1]:
            low_grad = torch.mm(rows, weight).mul_(ctx.scaling).view_as(low)
        if ctx.needs_input_grad[2]:
            weight_grad = torch.mm(rows.t(), low.flatten(0, -2)).mul_(ctx.scaling)
        return grad, low_grad, weight_grad, None


def add_low_rank(
    base: Tensor, low: Tensor, weight: Tensor, scaling: float, *, in_place: bool
) -> Tensor:
    """Add the product of a low-rank adapter to that of its base.

    Args:
        base: (..., out), of any type.
        low: (..., rank), the input times the adapter's first matrix, of the same type.
        weight: (out, rank), the adapter's second matrix; cast to that type.
        scaling: Factor of the adapter's product.
        in_place: Overwrite `base`, which then must be needed nowhere else. A view is never
            overwritten: autograd would copy gradients for that.

    Returns:
        (..., out), the sum.
    """
    weight = weight.to(base.dtype)
    in_place = in_place and not torch.compiler.is_compiling()
    if in_place and not base._is_view() and base.is_contiguous():
        return _AddLowRank.apply(base, low, weight, scaling)
    rows = base.reshape(-1, base.shape[-1])
    return torch.addmm(rows, low.flatten(0, -2), weight.t(), alpha=scaling).view_as(base)
