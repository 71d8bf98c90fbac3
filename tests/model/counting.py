"""Counts the bytes that a forward pass leaves behind for its backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class KeptStorages(TorchDispatchMode):
    """Notes all memory that is made; what of it is alive, or was at most, can be asked later.

    Temporary memory inside one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage()._cdata
            for one in tree_leaves((args, kwargs))
            if isinstance(one, torch.Tensor)
        }
        for one in tree_leaves(output):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in given:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.total += storage.nbytes()
        self.peak = max(self.peak, self.alive())
        return output

    def alive(self) -> int:
        return sum(size for made, size in self._made.values() if not made.expired())


def kept_bytes(forward: Callable[[], Any]) -> int:
    """Count what is alive after ``forward``, its result's graph included."""
    with KeptStorages() as kept:
        result = forward()
        alive = kept.alive()
    del result
    return alive


def peak_bytes(step: Callable[[], Any]) -> int:
    """Count what is alive at most while ``step`` runs."""
    with KeptStorages() as kept:
        step()
    return kept.peak


def made_bytes(step: Callable[[], Any]) -> int:
    """Add up all that ``step`` makes, however short it lives."""
    with KeptStorages() as kept:
        step()
    return kept.total
