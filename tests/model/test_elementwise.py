"""Elementwise steps against autograd of the published formula."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from phi3v.model.elementwise import (
    plain_quick_gelu,
    plain_rms_norm,
    plain_swiglu,
    quick_gelu,
    rms_norm,
    swiglu,
)

PAIRS = [
    (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: plain_rms_norm(x, w, 1e-5)),
    (lambda x, _: swiglu(x), lambda x, _: plain_swiglu(x)),
    (lambda x, _: quick_gelu(x), lambda x, _: plain_quick_gelu(x)),
]


def run(step: Callable[..., Tensor], states: Tensor, weight: Tensor) -> list[Tensor]:
    inputs = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
    output = step(*inputs)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype))
    return [output.detach(), *(one.grad for one in inputs if one.grad is not None)]


@pytest.mark.parametrize("pair", PAIRS, ids=["norm", "swiglu", "gelu"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=str,
)
def test_step_and_its_gradients_are_those_of_autograd(
    pair: tuple[Callable[..., Tensor], ...], dtype: torch.dtype, tolerance: float
) -> None:
    states, weight = torch.randn(2, 5, 16, dtype=dtype), torch.rand(16, dtype=dtype) + 0.5
    ours, theirs = (run(step, states, weight) for step in pair)
    # The forward pass is the same to the last bit.
    assert_close(ours[0], theirs[0], rtol=0, atol=0)
    assert_close(ours[1:], theirs[1:], rtol=tolerance, atol=tolerance)


def test_weights_may_be_wider_than_states() -> None:
    # Trained norms stay float32 beside bfloat16 states.
    states, weight = torch.randn(3, 8, dtype=torch.bfloat16), torch.rand(8)
    ours = run(PAIRS[0][0], states, weight)
    theirs = run(PAIRS[0][1], states, weight)
    assert [one.dtype for one in ours] == [one.dtype for one in theirs]
    assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pair", PAIRS, ids=["norm", "swiglu", "gelu"])
def test_only_the_input_is_kept(pair: tuple[Callable[..., Tensor], ...]) -> None:
    states, weight = torch.randn(4, 64, requires_grad=True), torch.rand(64)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        pair[0](states, weight)
    assert kept[0] == states.numel()
    assert sum(kept[1:]) <= 64 + 4
