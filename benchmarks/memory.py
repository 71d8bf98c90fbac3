"""What is alive when a training step needs most memory: by the line that made it; one JSON object.

python -m benchmarks.memory ours lora --model mem-V --batch mixed-4

Memory inside one operation, and holes of the allocator, are not seen.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.arms import ARMS, METHODS, build, make_optimizer, prepare, step_of
from benchmarks.batches import make_groups
from benchmarks.models import SIZES

_SHOWN = ("phi3v", "peft", "benchmarks")


class PeakMemory(TorchDispatchMode):
    """Remembers which results are alive, and what they were when they took most."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int, str]] = {}
        self.peak = 0
        self.at_peak: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        for one in _tensors(result):
            storage = one.untyped_storage()
            if storage._cdata not in given:
                line = f"{_place()} {func.overloadpacket.__name__} {tuple(one.shape)}"
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), line
        self._made = {key: one for key, one in self._made.items() if not one[0].expired()}
        alive = sum(size for _, size, _ in self._made.values())
        if alive > self.peak:
            self.peak, self.at_peak = alive, Counter()
            for _, size, line in self._made.values():
                self.at_peak[line] += size
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def _place() -> str:
    """Name the innermost line of this project or of PEFT that is running."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if any(part in _SHOWN for part in path.parts[-4:-1]):
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def profile(arm: str, method: str, *, model_name: str, batch_kind: str, num_crops: int) -> Any:
    """Make one step after the optimizer's states are there.

    Returns:
        ``peak_mb`` and ``alive``: megabytes (1e6 bytes) by line, operation and shape.
    """
    model, config = build(arm, method, SIZES[model_name])
    vocabulary = config.vocab_size
    step = step_of(arm, model, make_optimizer(arm, model))
    step(prepare(arm, make_groups("images-1", num_crops=1, vocabulary=vocabulary), 1))
    groups = make_groups(batch_kind, num_crops=num_crops, vocabulary=vocabulary)
    batch = prepare(arm, groups, num_crops)
    with PeakMemory() as memory:
        step(batch)
    lines = {line: size / 1e6 for line, size in memory.at_peak.most_common()}
    return {"peak_mb": memory.peak / 1e6, "alive": lines}


def main(argv: list[str]) -> int:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--model", choices=SIZES, default="mem-V")
    parser.add_argument("--batch", default="mixed-4", help="kind of batch, see benchmarks.batches")
    parser.add_argument("--num_crops", type=int, default=16)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = profile(
        options.arm,
        options.method,
        model_name=options.model,
        batch_kind=options.batch,
        num_crops=options.num_crops,
    )
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
