"""From the flags to packs of the training set, and the largest batch of a run."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from phi3v.data.dataset import SupervisedDataset
from phi3v.data.packing import PackedDataset, plan_packs
from phi3v.data.sharing import share_groups
from phi3v.model.configuration import Phi3VConfig
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.flags import RunArguments
from phi3v.training.operations import needed_operations
from phi3v.training.parts import plan_parts

logger = logging.getLogger(__name__)


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
    dataset: SupervisedDataset, config: Phi3VConfig, arguments: RunArguments
) -> PackedDataset:
    """Plan the packs of a run; each knows the operations that it needs, those of the tower too.

    Args:
        dataset: Training set; lengths come from headers of media, no picture is decoded.
        config: Gives what a document costs, the image token and the rotary switch.
        arguments: ``--pack_tokens``, ``--share_images``, ``--max_branches``, ``--seed``, and what
            trains.

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
    multiple = training.world_size
    if multiple > 1:
        # Batches on all processes: the library would fill the last ones up with packs once more.
        size = training.per_device_train_batch_size
        multiple *= size if len(tokens) >= multiple * size else 1
    packs = plan_packs(tokens, training.pack_tokens, seed=training.seed, num_ranks=multiple)
    parts = plan_parts(arguments.model, arguments.lora)
    units = _sizes_of_units(dataset, groups, tokens)
    keeps_features = arguments.data.cache_vision is not None
    costs = packs.sums(needed_operations(config, parts, **units, keeps_features=keeps_features))
    logger.warning(
        "--packing: %d samples of %d tokens in %d rows, %.1f %% full; %d tokens are shared",
        len(lengths),
        lengths.sum(),
        len(packs),
        100 * tokens.sum() / (len(packs) * training.pack_tokens),
        lengths.sum() - tokens.sum(),
    )
    return PackedDataset(dataset, packs, groups, costs=costs, tokens=packs.sums(tokens))


def _sizes_of_units(
    dataset: SupervisedDataset, groups: list[list[int]] | None, tokens: np.ndarray
) -> dict[str, Any]:
    """Gather what decides the operations of every unit, each picture of a group once."""
    if dataset.num_crops is None or dataset.num_labels is None:
        dataset.measure()
    crops, labels = np.asarray(dataset.num_crops), np.asarray(dataset.num_labels)
    if groups is None:
        return {"lengths": tokens, "crops": crops, "labels": labels}
    lengths = np.array(dataset.lengths(), dtype=np.int64)
    counts = np.array([len(group) for group in groups])
    starts = np.cumsum(counts) - counts
    members = np.concatenate(groups)
    # Of n lengths, n - 1 begin with what is shared; its own pairs count once.
    prefixes = (np.add.reduceat(lengths[members], starts) - tokens) // np.maximum(counts - 1, 1)
    return {
        "lengths": tokens,
        "crops": crops[members[starts]],
        "labels": np.add.reduceat(labels[members], starts),
        "squares": np.add.reduceat(lengths[members] ** 2, starts) - (counts - 1) * prefixes**2,
    }


def largest_batch(
    dataset: SupervisedDataset, packs: PackedDataset | None, training: Phi3VTrainingArguments
) -> Batch:
    """Bound the batches of a run by its longest sample, or its fullest pack.

    Args:
        dataset: Training set, after its survey.
        packs: Its packs, if there are any.
        training: Gives the size of a batch.
    """
    assert dataset.num_crops is not None and dataset.num_labels is not None
    lengths, size = np.array(dataset.lengths()), training.per_device_train_batch_size
    if packs is None:
        crops, labels = dataset.num_crops.max(), dataset.num_labels.max()
        return Batch(int(lengths.max()) * size, int(labels) * size, int(crops) * size)
    tokens = int(packs.tokens.max()) * size
    # No mixture of documents has more crops a token than the one with most.
    return Batch(tokens, tokens, int(tokens * (dataset.num_crops / lengths).max()))
