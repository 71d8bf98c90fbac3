"""Joins examples into a padded batch. Letters: B rows, T tokens, C crops, S crop size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from phi3v.data.encoding import IGNORE_INDEX, Example


class Collator:
    """Pad examples to the right and concatenate their crops.

    The mask comes from the lengths, never from the ids: a text may hold the pad token itself.

    Args:
        pad_token_id: Id that fills up `input_ids`.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: B examples with any number of pictures each.

        Returns:
            `input_ids`, `attention_mask`, `labels`: int64 (B, T); and, if there are pictures,
            `pixel_values`: uint8 (C, 3, S, S) and `image_sizes`: list of (height, width), both of
            all pictures in row order.
        """
        ids = [example["input_ids"] for example in examples]
        batch: dict[str, Any] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(
                [example["labels"] for example in examples],
                batch_first=True,
                padding_value=IGNORE_INDEX,
            ),
        }
        pixels = [example["pixel_values"] for example in examples if "pixel_values" in example]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
            batch["image_sizes"] = [size for example in examples for size in example["image_sizes"]]
        return batch
