"""Prompts ready for the model, one by one, and joined to a batch.

A prompt that waits for its turn holds ids and compact crops, never whole pictures: what it takes in
memory is bounded by its number of tokens. Letters: B prompts, T tokens of the longest, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phi3v.model.answers import Conversation, render_prompt
from phi3v.model.batching import batch_rows
from phi3v.model.processing import Phi3VProcessor


@dataclass(frozen=True)
class PreparedPrompt:
    """Model inputs of one prompt.

    Attributes:
        input_ids: Ids of the prompt.
        pixel_values: uint8 crops of its pictures, None without pictures.
        image_sizes: (N, 2) padded sizes of its pictures.
    """

    input_ids: list[int]
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None


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
    return PreparedPrompt(ids, inputs.get("pixel_values"), inputs.get("image_sizes"))


def join_prompts(prompts: Sequence[PreparedPrompt], bos_token_id: int) -> dict[str, Any]:
    """Join prompts to the inputs of ``generate``, padded at their left.

    Args:
        prompts: B prompts.
        bos_token_id: Stands in padding: every prompt holds it, so no penalty sees a foreign id.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, T), and if there are images their ``pixel_values``
        and ``image_sizes`` (N, 2), in row order, on the CPU.
    """
    inputs = batch_rows(
        [prompt.input_ids for prompt in prompts],
        bos_token_id,
        padding=True,
        padding_side="left",
        max_length=None,
        return_tensors="pt",
    )
    pixels = [one.pixel_values for one in prompts if one.pixel_values is not None]
    sizes = [one.image_sizes for one in prompts if one.image_sizes is not None]
    if pixels:
        inputs |= {"pixel_values": torch.cat(pixels), "image_sizes": torch.cat(sizes)}
    return inputs
