"""From the flags to packs of the training set."""

import logging

import numpy as np

from phi3v.data.dataset import SupervisedDataset
from phi3v.data.packing import PackedDataset, plan_packs
from phi3v.data.sharing import share_groups
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.cost import forward_cost
from phi3v.training.arguments import Phi3VTrainingArguments

logger = logging.getLogger(__name__)


def pack_training_set(
    dataset: SupervisedDataset, config: Phi3VConfig, training: Phi3VTrainingArguments
) -> PackedDataset:
    """Plan the packs of a run.

    Args:
        dataset: Training set; lengths come from headers of media, no picture is decoded.
        config: Gives what a document costs, the image token and the rotary switch.
        training: ``--pack_tokens``, ``--share_images``, ``--max_branches``, ``--seed``.

    Returns:
        Packs as a data set; their number is a multiple of the number of processes.
    """
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
    packs = plan_packs(
        tokens, training.pack_tokens, seed=training.seed, num_ranks=training.world_size
    )
    costs = packs.sums(forward_cost(config).of_documents(tokens))
    logger.warning(
        "--packing: %d samples of %d tokens in %d rows, %.1f %% full; %d tokens are shared",
        len(lengths),
        lengths.sum(),
        len(packs),
        100 * tokens.sum() / (len(packs) * training.pack_tokens),
        lengths.sum() - tokens.sum(),
    )
    return PackedDataset(dataset, packs, groups, costs=costs, tokens=packs.sums(tokens))
