"""From the flags to packs of the training set, and the largest batch of a run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phi3v.data.dataset import SupervisedDataset
from phi3v.data.packing import PackedDataset, UnitSizes, plan_packs
from phi3v.data.sharing import share_groups
from phi3v.model.configuration import Phi3VConfig
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.flags import RunArguments
from phi3v.training.operations import needed_operations
from phi3v.training.parts import plan_parts

logger = logging.getLogger(__name__)

# Share of the rows below which longer ones are looked at.
FULL = 0.97


@dataclass(frozen=True)
class Batch:
    """The largest batch of a run: its tokens, labels and crops, the global ones too."""

    tokens: int
    labels: int
    crops: int


def settle_batch_size(arguments: RunArguments) -> None:
    """Let a packed batch be one pack, unless the user says otherwise."""
    if "per_device_train_batch_size" not in arguments.given:
        arguments.training.per_device_train_batch_size = 1


def pack_training_set(
    dataset: SupervisedDataset,
    config: Phi3VConfig,
    arguments: RunArguments,
    *,
    num_ranks: int | None = None,
) -> PackedDataset:
    """Plan the packs of a run; each knows the operations that it needs, those of the tower too.

    Args:
        dataset: Training set; lengths come from headers of media, no picture is decoded.
        config: Gives what a document costs, the image token and the rotary switch.
        arguments: ``--pack_tokens``, ``--share_images``, ``--max_branches``, ``--seed``, and what
            trains.
        num_ranks: Processes that train; None: those that run now.

    Returns:
        Packs as a data set; on several processes their number is a multiple of those that run side
        by side, if there are samples enough.
    """
    training = arguments.training
    lengths = np.array(dataset.lengths(), dtype=np.int64)
    groups, tokens = None, lengths
    if training.share_images:
        groups, tokens = share_groups(
            dataset,
            lengths,
            config.image_token_id,
            max_branches=training.max_branches,
            rotary_switch=config.original_max_position_embeddings,
        )
    multiple = num_ranks or training.world_size
    if multiple > 1:
        # Batches on all processes: the library would fill the last ones up with packs once more.
        size = training.per_device_train_batch_size
        multiple *= size if len(tokens) >= multiple * size else 1
    packs = plan_packs(tokens, training.pack_tokens, seed=training.seed, num_ranks=multiple)
    parts = plan_parts(arguments.model, arguments.lora)
    units, squares = _sizes_of_units(dataset, groups, tokens)
    costs = needed_operations(
        config,
        parts,
        lengths=units.tokens,
        crops=units.crops,
        labels=units.labels,
        squares=squares,
        keeps_features=arguments.data.cache_vision is not None,
    )
    logger.warning(
        "--packing: %d samples of %d tokens in %d rows, %.1f %% full; %d tokens are shared",
        len(lengths),
        lengths.sum(),
        len(packs),
        100 * tokens.sum() / (len(packs) * training.pack_tokens),
        lengths.sum() - tokens.sum(),
    )
    return PackedDataset(dataset, packs, groups, costs=packs.sums(costs), units=units)


def _sizes_of_units(
    dataset: SupervisedDataset, groups: list[list[int]] | None, tokens: np.ndarray
) -> tuple[UnitSizes, np.ndarray | None]:
    """Gather what every unit holds, and its pairs of tokens that attend, None for plain ones."""
    if dataset.num_crops is None or dataset.num_labels is None:
        dataset.measure()
    crops, labels = np.asarray(dataset.num_crops), np.asarray(dataset.num_labels)
    if groups is None:
        return UnitSizes(tokens, crops, labels), None
    lengths = np.array(dataset.lengths(), dtype=np.int64)
    counts = np.array([len(group) for group in groups])
    starts = np.cumsum(counts) - counts
    members = np.concatenate(groups)
    # Of n lengths, n - 1 begin with what is shared; its own pairs count once.
    prefixes = (np.add.reduceat(lengths[members], starts) - tokens) // np.maximum(counts - 1, 1)
    squares = np.add.reduceat(lengths[members] ** 2, starts) - (counts - 1) * prefixes**2
    summed = np.add.reduceat(labels[members], starts)
    return UnitSizes(tokens, crops[members[starts]], summed), squares


def largest_batch(
    dataset: SupervisedDataset, packs: PackedDataset | None, training: Phi3VTrainingArguments
) -> Batch:
    """Bound the batches of a run by what its samples or packs hold at most.

    Args:
        dataset: Training set, after its survey.
        packs: Its packs, if there are any.
        training: Gives the size of a batch.
    """
    assert dataset.num_crops is not None and dataset.num_labels is not None
    size = training.per_device_train_batch_size
    held: list[Sequence[int] | np.ndarray]
    held = [dataset.lengths(), dataset.num_labels, dataset.num_crops]
    if packs is not None:
        units = packs.units
        held = [packs.packs.sums(one) for one in (units.tokens, units.labels, units.crops)]
    return Batch(*(int(np.max(one)) * size for one in held))


def measure_rows(
    count: int, tokens: np.ndarray, training: Phi3VTrainingArguments
) -> dict[str, Any]:
    """Say how full the rows of ``--packing`` get, and which longer ones would get full.

    Args:
        count: Number of the rows.
        tokens: (U,) of every unit.
        training: Gives ``--pack_tokens`` and ``--seed``.
    """
    own, total = training.pack_tokens, int(tokens.sum())
    rows: dict[str, Any] = {"tokens": own, "count": count, "fuller": None}
    rows["full"] = total / (count * own)
    if rows["full"] < FULL:
        for longer in (own * quarters // 4 for quarters in (5, 6, 7, 8)):
            full = total / (len(plan_packs(tokens, longer, seed=training.seed)) * longer)
            if full >= FULL:
                return rows | {"fuller": {"tokens": longer, "full": full}}
    return rows
