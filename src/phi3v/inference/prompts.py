"""Prompts ready for the model, one by one, and joined to a batch.

A prompt that waits for its turn holds ids and compact crops, never whole pictures: what it takes in
memory is bounded by its number of tokens. Letters: B prompts, T tokens of the longest, C crops
of a picture, S side of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from torch import Tensor

from phi3v.model.answers import Conversation, render_prompt
from phi3v.model.batching import batch_rows
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.vision import image_grids


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture cut into crops.

    Attributes:
        pixel_values: (C, 3, S, S) uint8 crops.
        image_size: Padded height and width.
        start: Place of its first image token in the prompt.
        num_tokens: Its image tokens, one behind the other.
        digest: 16 bytes that tell its crops from those of any other picture.
    """

    pixel_values: Tensor
    image_size: tuple[int, int]
    start: int
    num_tokens: int
    digest: bytes


@dataclass(frozen=True)
class PreparedPrompt:
    """Model inputs of one prompt.

    Attributes:
        input_ids: Ids of the prompt.
        pictures: Its pictures in order.
    """

    input_ids: list[int]
    pictures: tuple[PreparedPicture, ...] = ()

    def tokens(self, answer: Sequence[int] = ()) -> np.ndarray:
        """Tell apart the tokens of the prompt and of an answer, pictures by their contents.

        Returns:
            (T, 2) int64: id and 0, or at places of a picture the two halves of its digest.
        """
        ids = np.array([*self.input_ids, *answer], dtype=np.int64)
        tokens = np.stack([ids, np.zeros_like(ids)], axis=1)
        for one in self.pictures:
            digest = np.frombuffer(one.digest, dtype=np.int64)
            tokens[one.start : one.start + one.num_tokens] = digest
        return tokens


def prepare_prompt(
    processor: Phi3VProcessor, conversation: Conversation, max_tokens: int
) -> PreparedPrompt:
    """Render a conversation and cut its pictures into crops.

    Args:
        processor: The processor.
        conversation: Ends with a question.
        max_tokens: Longest prompt that is accepted; checked before any crop is made.

    Raises:
        ValueError: The prompt is too long, or tags and pictures do not match.
    """
    prompt = render_prompt(processor, conversation)
    if prompt.num_tokens > max_tokens:
        counts = prompt.image_token_counts
        raise ValueError(
            f"the conversation has {prompt.num_tokens} tokens, {sum(counts)} of them of "
            f"{len(counts)} picture(s), but at most {max_tokens} are taken; use fewer pictures, "
            "frames or crops, or a shorter text"
        )
    inputs = processor(
        [prompt.text],
        [list(conversation.pictures)] if conversation.pictures else None,
        return_tensors="pt",
        pixel_format="compact",
    )
    ids = inputs["input_ids"][0].tolist()
    if not conversation.pictures:
        return PreparedPrompt(ids)
    sizes = inputs["image_sizes"].tolist()
    grids = image_grids(sizes, processor.image_processor.crop_size)
    crops = inputs["pixel_values"].split([grid.rows * grid.columns for grid in grids])
    places = [place for place, one in enumerate(ids) if one == processor.image_token_id]
    pictures = []
    for own, (height, width), count in zip(crops, sizes, prompt.image_token_counts, strict=True):
        digest = blake2b(f"{height} {width} ".encode() + own.numpy().tobytes(), digest_size=16)
        pictures.append(PreparedPicture(own, (height, width), places[0], count, digest.digest()))
        del places[:count]
    return PreparedPrompt(ids, tuple(pictures))


def join_prompts(prompts: Sequence[PreparedPrompt], bos_token_id: int) -> dict[str, Any]:
    """Join prompts to ``input_ids`` and ``attention_mask`` (B, T), padded at their left.

    Args:
        prompts: B prompts.
        bos_token_id: Stands in padding: every prompt holds it, so no penalty sees a foreign id.
    """
    return batch_rows(
        [prompt.input_ids for prompt in prompts],
        bos_token_id,
        padding=True,
        padding_side="left",
        max_length=None,
        return_tensors="pt",
    )
