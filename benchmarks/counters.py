"""What can be counted without a clock, and holds on any device.

Operations and waits are counted on the meta device, where tensors have shapes and no numbers: at
the published sizes, in seconds. Letters: T tokens, D hidden size.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arms import build, loss_of, prepare
from benchmarks.batches import CROP, make_groups
from benchmarks.models import PUBLISHED, SIZES, Size, model_config
from phi3v.data.encoding import Example
from phi3v.model.cost import forward_cost
from phi3v.model.crops import crop_grid, num_image_tokens

_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
# Multiplications of a backward pass of attention: scores again, and the gradients of scores,
# values, queries and keys, where the forward pass has two.
_BACKWARD_OF_ATTENTION = 2.5


class _Attention(torch.autograd.Function):
    """Attention without numbers: counts what a kernel that skips masked blocks executes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        pairs = query.shape[:-1].numel() * key.shape[-2] / (2 if causal else 1)
        ctx.flops = 2 * pairs * (key.shape[-1] + value.shape[-1])
        ctx.save_for_backward(query, key, value)
        _Attention.total += ctx.flops
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _Attention.total += _BACKWARD_OF_ATTENTION * ctx.flops
        return (*(torch.empty_like(saved) for saved in ctx.saved_tensors), None)

    total = 0.0


def _counted_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **rest: Any
) -> Tensor:
    return _Attention.apply(query, key, value, bool(rest.get("is_causal")))


@contextmanager
def _attention_counted() -> Iterator[None]:
    # There is no autocast on the meta device.
    with (
        patch.object(torch.nn.functional, "scaled_dot_product_attention", _counted_attention),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        yield


class _Waits(TorchDispatchMode):
    """Counts where the host waits for the device, and answers in its place."""

    def __init__(self, num_places: int) -> None:
        super().__init__()
        self.count = 0
        self._num_places = num_places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITS:
            self.count += 1
            if args[0].device.type == "meta":
                # A length below the rotary switch; the places of the images.
                shape = (self._num_places, args[0].dim())
                return 1000 if name != "nonzero" else args[0].new_empty(shape, dtype=torch.int64)
        return func(*args, **(kwargs or {}))


def count_step(
    arm: str, method: str, size: Size, groups: list[list[Example]], **options: Any
) -> dict[str, Any]:
    """Count operations and waits of one forward and backward pass, without numbers.

    Args:
        arm: Way to make the step.
        method: ``lora`` or ``full``.
        size: Sizes of the model.
        groups: Samples of the step, of at most 16 crops.
        **options: Of `build`.

    Returns:
        ``flops`` executed and ``waits``.
    """
    with torch.device("meta"):
        model, _ = build(arm, method, size, dtype=torch.bfloat16, **options)
    batch = prepare(arm, groups, 16)
    num_places = sum(int((one["input_ids"] == 3).sum()) for group in groups for one in group)
    sizes = {name: batch.pop(name) for name in ("image_sizes",) if name in batch}
    if arm == "hf":
        # The library's mask builder reads the mask; right padding needs none to keep the shapes.
        batch["attention_mask"] = None
    batch = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    _Attention.total = 0.0
    waits = _Waits(num_places)
    with _attention_counted(), FlopCounterMode(display=False) as flops, waits:
        loss_of(arm, model, batch | sizes).backward()
    return {"flops": flops.get_total_flops() + _Attention.total, "waits": waits.count}


def needed_flops(method: str, size: Size, groups: list[list[Example]]) -> float:
    """Compute the operations that the gradients of a step cannot do without.

    The decoder trains by adapters or fully, the image projection fully, the tower is frozen.
    """
    config = model_config(size)
    cost = forward_cost(config)
    examples = [example for group in groups for example in group]
    lengths = np.array([len(example["input_ids"]) for example in examples], dtype=float)
    sizes = [one for example in examples for one in example["image_sizes"]]
    grids = [crop_grid(*one, CROP) for one in sizes]
    crops = sum(grid.rows * grid.columns + 1 for grid in grids)
    image_tokens = sum(num_image_tokens(grid) for grid in grids)
    labels = sum(int((example["labels"] != -100).sum()) for example in examples)
    trained = 3 if method == "full" else 2
    width, merged = config.hidden_size, 4 * config.vision.hidden_size
    total = cost.per_crop * crops
    total += trained * (cost.per_token * lengths.sum() + cost.per_label * labels)
    total += 3 * cost.per_squared_token * (lengths**2).sum()
    # The projection's first layer has no input that wants a gradient.
    total += image_tokens * 2 * (2 * merged * width + 3 * width * width)
    if method == "lora":
        total += 6 * (size.adapters[0] * lengths.sum() + size.adapters[1] * labels)
    return float(total)


class _Operations(TorchDispatchMode):
    """Counts operations that compute (views do not), and remembers the memory that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        is_view = any(one.alias_info and not one.alias_info.is_write for one in returned)
        self.count += not is_view
        result = func(*args, **(kwargs or {}))
        for one in [] if is_view else tree_leaves(result):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        """Add up the bytes that something still holds."""
        return sum(size for made, size in self._made.values() if not made.expired())


def per_layer(arm: str, method: str, num_tokens: int = 128) -> dict[str, float]:
    """Count saved bytes and operations of a decoder layer's forward pass, in bfloat16.

    Two depths and two lengths are compared, so that what belongs to no layer or no token drops out.

    Returns:
        ``saved`` in bytes per token over D, ``operations``.
    """
    lengths = (num_tokens, 2 * num_tokens)
    counts = {
        (depth, length): _saved_and_operations(arm, method, depth, length)
        for depth in (2, 4)
        for length in lengths
    }
    short, long = (
        [(after - before) / 2 for before, after in zip(counts[2, n], counts[4, n], strict=True)]
        for n in lengths
    )
    saved = (long[0] - short[0]) / num_tokens / SIZES["fm-tiny"].hidden
    return {"saved": saved, "operations": short[1]}


def _saved_and_operations(arm: str, method: str, depth: int, num_tokens: int) -> tuple[int, int]:
    size = Size(**{**SIZES["fm-tiny"].__dict__, "layers": depth})
    model, config = build(arm, method, size, dtype=torch.bfloat16)
    groups = make_groups(f"text-{num_tokens}", num_crops=1, vocabulary=config.vocab_size)
    batch = prepare(arm, groups, 1)
    operations, autocast = _Operations(), torch.autocast("cpu", torch.bfloat16)
    with operations, autocast:
        loss = loss_of(arm, model, batch)
        kept = operations.alive()
    assert loss.requires_grad
    return kept, operations.count


def crops_and_bytes(arm: str, groups: list[list[Example]]) -> dict[str, float]:
    """Count the crops that the tower gets over the real ones, and the bytes per sample."""
    batch = prepare(arm, groups, 16)
    samples = sum(len(group) for group in groups)
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    pixels = batch["pixel_values"]
    sizes = [tuple(map(int, one)) for one in batch["image_sizes"]]
    real = sum(height * width // CROP**2 + 1 for height, width in sizes)
    if arm == "hf":
        encoded = real
    elif arm.startswith("ours"):
        # The global view of every image is made on the device.
        encoded = pixels.shape[0] + len(sizes)
    else:
        encoded = pixels.shape[0] * pixels.shape[1]
    return {
        "crops": encoded / real,
        "megabytes": sum(tensor.nbytes for tensor in tensors) / samples / 1e6,
    }


def count_all(size: Size) -> dict[str, Any]:
    """Count everything for every arm and method; operations and waits at the given size."""
    groups = make_groups("mixed-4", num_crops=16, vocabulary=size.vocabulary)
    counted: dict[str, Any] = {}
    for arm in ("original-sdpa", "hf", "ours", "ours-selective", "ours-full"):
        counted[arm] = crops_and_bytes(arm, groups)
        for method in ("lora", "full"):
            step = count_step(arm, method, size, groups)
            needed = needed_flops(method, size, groups)
            layer = per_layer(arm, method)
            counted[arm][method] = {
                "teraflops": step["flops"] / 1e12,
                "executed_over_needed": step["flops"] / needed,
                "waits": step["waits"],
                **layer,
            }
    return counted


def main(argv: list[str]) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(json.dumps(count_all(SIZES["quick"] if options.quick else PUBLISHED)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
