"""The order of packs over ranks: those that run at the same time cost the same.

Letter: K packs.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def balanced_order(
    costs: np.ndarray, num_ranks: int, seed: int, *, batch_size: int = 1
) -> np.ndarray:
    """Order packs so that those which run at the same time cost the same.

    Args:
        costs: (K,) cost of every pack in any unit, K a multiple of ``num_ranks``.
        num_ranks: Number of ranks; consecutive batches run side by side on them.
        seed: Decides the order of the steps, and which rank gets which pack.
        batch_size: Packs of a batch.

    Returns:
        int64 (K,) numbers of the packs.
    """
    random = np.random.default_rng(seed)
    steps = np.argsort(costs, kind="stable").reshape(-1, num_ranks)
    steps = random.permuted(steps, axis=1)
    steps = random.permutation(steps)
    num_whole = len(steps) // batch_size * batch_size
    batches = steps[:num_whole].reshape(-1, batch_size, num_ranks).swapaxes(1, 2)
    return np.concatenate([batches.ravel(), steps[num_whole:].ravel()])


class BalancedSampler(Sampler[int]):
    """Yields the packs of an epoch so that ranks finish their steps together.

    Args:
        costs: (K,) cost of every pack.
        num_ranks: Number of processes; consecutive batches go to different ones.
        seed: Base of the seed of every epoch.
        batch_size: Packs of a batch.
    """

    def __init__(
        self, costs: np.ndarray, num_ranks: int, seed: int, *, batch_size: int = 1
    ) -> None:
        self.costs = costs
        self.num_ranks = num_ranks
        self.seed = seed
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.costs)

    def __iter__(self) -> Iterator[int]:
        seed = self.seed + self.epoch
        order = balanced_order(self.costs, self.num_ranks, seed, batch_size=self.batch_size)
        yield from order.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch
