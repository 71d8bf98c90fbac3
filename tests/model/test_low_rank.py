"""The product of an adapter: the same sum and gradients as step by step, with fewer results."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from phi3v.model.low_rank import add_low_rank


class Sizes(TorchDispatchMode):
    """Counts the results that are as large as the product of the base."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.storages: set[int] = set()
        self._numel = numel

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self._numel:
            self.storages.add(result.untyped_storage()._cdata)
        return result


def tensors() -> list[Tensor]:
    torch.manual_seed(3)
    shapes = {"inputs": (2, 5, 8), "base": (12, 8), "first": (3, 8), "second": (12, 3)}
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes.values()]


def run(
    in_place: bool | None, *, frozen: tuple[int, ...] = ()
) -> tuple[Tensor, list[Tensor | None]]:
    inputs, base, first, second = given = tensors()
    for number in frozen:
        given[number].requires_grad_(False)
    product, low = inputs @ base.t(), inputs @ first.t()
    if in_place is None:
        result = product + (low @ second.t()) * 0.3
    else:
        result = add_low_rank(product, low, second, 0.3, in_place=in_place)
    (result * torch.arange(12)).square().sum().backward()
    return result.detach(), [one.grad for one in given]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("frozen", [(), (0, 1), (1,), (3,), (0, 1, 2)])
def test_the_sum_and_all_gradients_are_those_of_the_steps(
    in_place: bool, frozen: tuple[int, ...]
) -> None:
    assert_close(run(in_place, frozen=frozen), run(None, frozen=frozen), rtol=1e-12, atol=1e-12)


def test_no_result_of_full_width_is_made_beside_the_product() -> None:
    product, low, second = torch.randn(5, 12), torch.randn(5, 3), torch.randn(12, 3)
    with Sizes(60) as sizes:
        result = add_low_rank(product, low, second, 1.0, in_place=True)
    assert result.data_ptr() == product.data_ptr()
    assert len(sizes.storages) == 1


def test_a_view_is_left_as_it_is() -> None:
    whole = torch.randn(6, 12)
    part, low, second = whole[1:], torch.randn(5, 3), torch.randn(12, 3)
    before = whole.clone()
    result = add_low_rank(part, low, second, 1.0, in_place=True)
    assert torch.equal(whole, before)
    assert_close(result, part + low @ second.t())


def test_a_weight_of_another_type_is_rounded_to_that_of_the_product() -> None:
    product, low = torch.ones(4, 6).bfloat16(), torch.ones(4, 2).bfloat16()
    second = torch.full((6, 2), 0.3, requires_grad=True)
    result = add_low_rank(product, low, second, 2.0, in_place=True)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert second.grad is not None
    assert_close(second.grad, torch.full((6, 2), 8.0))
