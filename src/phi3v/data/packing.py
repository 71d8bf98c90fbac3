"""Filling rows with whole documents: the plan of packs, and what they hold.

Everything works on lengths and costs alone, before a picture is opened. Letters: U units
(documents, or groups of documents that share a prefix), K packs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from phi3v.data.encoding import Example

# Units are drawn at random into windows of this size and packed within them: large enough to fill
# packs, small enough to mix the data.
WINDOW = 16384
# Units among which the best sum is searched at a time: 16 have 65,536 subsets, more than most packs
# have tokens.
CANDIDATES = 16


@dataclass(frozen=True)
class Packs:
    """Which units stand in which pack.

    Attributes:
        units: int64 (U,) numbers of the units, pack after pack.
        bounds: int64 (K + 1,) pack k holds ``units[bounds[k] : bounds[k + 1]]``.
    """

    units: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.units[self.bounds[pack] : self.bounds[pack + 1]]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add a value of every unit (U,) up over each pack; (K,)."""
        totals = np.concatenate([[0], np.cumsum(values[self.units])])
        return np.diff(totals[self.bounds])


def plan_packs(lengths: np.ndarray, pack_tokens: int, *, seed: int, num_ranks: int = 1) -> Packs:
    """Put units into packs of at most ``pack_tokens`` tokens.

    Each pack starts with the longest unit left in its window, as long units are the hardest to
    place. Among a few of those that fit beside it, short and long ones, the subset that leaves the
    least room is added, again until nothing fits. A unit longer than a pack stands alone.

    Args:
        lengths: int (U,) tokens of every unit.
        pack_tokens: Room of a pack.
        seed: Decides which units meet in a window; the same seed gives the same packs.
        num_ranks: The number of packs is made a multiple of it, by splitting packs; where all hold
            one unit, by empty ones.

    Raises:
        ValueError: There are fewer units than ranks.

    Source:
        Minimum bin slack with the longest item fixed: Gupta and Ho, "A new heuristic algorithm for
        the one-dimensional bin-packing problem", 1999.
    """
    if len(lengths) < num_ranks:
        raise ValueError(
            f"{len(lengths)} samples cannot be spread over {num_ranks} processes; use fewer"
        )
    # A unit of no tokens would fit for ever.
    lengths = np.maximum(lengths, 1)
    order = np.random.default_rng(seed).permutation(len(lengths))
    packs: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        # The last pack of a window is seldom full; its units get another chance.
        carried = packs.pop() if packs else []
        window = np.concatenate([np.array(carried, np.int64), order[start : start + WINDOW]])
        packs += _pack_window(window, lengths, pack_tokens)
    _split_to_multiple(packs, num_ranks)
    sizes = np.fromiter((len(pack) for pack in packs), np.int64, len(packs))
    units = np.fromiter((unit for pack in packs for unit in pack), np.int64, len(lengths))
    return Packs(units, np.concatenate([[0], np.cumsum(sizes)]))


def _pack_window(window: np.ndarray, lengths: np.ndarray, pack_tokens: int) -> list[list[int]]:
    ascending = window[np.argsort(lengths[window], kind="stable")]
    units: list[int] = ascending.tolist()
    sizes: list[int] = lengths[ascending].tolist()
    packs = []
    while units:
        pack, room = [units.pop()], pack_tokens - sizes.pop()
        while sizes and sizes[0] <= room:
            num_fitting = bisect_right(sizes, room)
            count = min(CANDIDATES, num_fitting)
            # From the longest that fits down to the shortest, evenly spread.
            places = [num_fitting - 1 - one * num_fitting // count for one in range(count)]
            for one in _best_subset([sizes[place] for place in places], room):
                room -= sizes.pop(places[one])
                pack.append(units.pop(places[one]))
        packs.append(pack)
    return packs


def _best_subset(sizes: list[int], room: int) -> list[int]:
    """Find the places of the sizes whose sum is the largest that fits; the first are preferred."""
    # Bit s of sums[n] says whether some of the first n sizes add up to s.
    sums, within = [1], (2 << room) - 1
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & within)
    rest = sums[-1].bit_length() - 1
    chosen = []
    for place in reversed(range(len(sizes))):
        if not sums[place] >> rest & 1:
            chosen.append(place)
            rest -= sizes[place]
    return chosen[::-1]


def _split_to_multiple(packs: list[list[int]], num_ranks: int) -> None:
    """Split the packs with the most units until their number is a multiple.

    A pack of one unit leaves an empty one behind.
    """
    while len(packs) % num_ranks:
        largest = max(range(len(packs)), key=lambda index: len(packs[index]))
        pack = packs[largest]
        packs[largest] = pack[: len(pack) // 2]
        packs.append(pack[len(pack) // 2 :])


@dataclass(frozen=True)
class UnitSizes:
    """What every unit holds, each shared token and picture counted once; int64 (U,) each."""

    tokens: np.ndarray
    crops: np.ndarray
    labels: np.ndarray


class _Examples(Protocol):
    def __getitem__(self, position: int) -> Example: ...

    def stand_in(self) -> Example: ...


class PackedDataset(Dataset[list[list[Example]]]):
    """Packs of a data set; an item is a list of groups of examples with a common beginning.

    An empty pack holds an example that trains nothing.

    Args:
        dataset: Gives single examples.
        packs: The plan over units.
        groups: Positions in the data set that form each unit; None means every example is one.
        costs: (K,) cost of every pack; None means that all cost the same.
        units: What every unit holds; None means that nothing is known.
    """

    def __init__(
        self,
        dataset: _Examples,
        packs: Packs,
        groups: Sequence[Sequence[int]] | None = None,
        *,
        costs: np.ndarray | None = None,
        units: UnitSizes | None = None,
    ) -> None:
        nothing = np.zeros(len(packs.units), np.int64)
        self.dataset = dataset
        self.packs = packs
        self.groups = groups
        self.costs = np.ones(len(packs)) if costs is None else costs
        self.units = UnitSizes(nothing, nothing, nothing) if units is None else units

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of every pack; (K,)."""
        return self.packs.sums(self.units.tokens)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, pack: int) -> list[list[Example]]:
        units = self.packs[pack].tolist()
        if not units:
            return [[self.dataset.stand_in()]]
        items = []
        for unit in units:
            positions = [unit] if self.groups is None else self.groups[unit]
            examples = [self.dataset[position] for position in positions]
            # What could not be read has no beginning in common with the others.
            bad = [[one] for one in examples if one.get("is_bad")]
            good = [one for one in examples if not one.get("is_bad")]
            items += [good, *bad] if good else bad
        return items
