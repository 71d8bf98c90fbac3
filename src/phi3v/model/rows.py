"""What the decoder layers need to know of a batch: mask, positions, lengths, options of the kernel.

Letters: B rows, T tokens of this call, U tokens seen with the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.rotary import packed_document_lengths
from phi3v.model.segments import Segment, flash_arguments, flex_mask, segment_positions


class Rows(NamedTuple):
    """A batch as the layers see it.

    Attributes:
        mask: In the form of the chosen kernel; None for plain causal attention.
        position_ids: (B, T).
        document_lengths: (B, T) or (B, 1) length of each token's document.
        options: Further arguments of the attention.
    """

    mask: Any
    position_ids: Tensor
    document_lengths: Tensor
    options: dict[str, Any]


def prepare_rows(
    config: Phi3VConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    *,
    past_key_values: Cache | None,
    document_lengths: Tensor | None,
) -> Rows:
    """Prepare rows in the library's forms: padded, cached, or packed by positions that restart.

    Args:
        config: Configuration with the chosen kernel.
        inputs_embeds: (B, T, hidden size).
        attention_mask: (B, U), 4-D as made by the library, or None.
        position_ids: (B, T) or None.
        past_key_values: Cache or None.
        document_lengths: (B, T) or (B, 1), or None to find them.
    """
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    packed = position_ids is not None and attention_mask is None and past_key_values is None
    batch_size, length = inputs_embeds.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs_embeds.device)[None] + past
    position_ids = position_ids.expand(batch_size, -1)
    if document_lengths is None:
        document_lengths = _document_lengths(position_ids, attention_mask, packed=packed)
    mask = causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        past_key_values=past_key_values,
        # The library searches positions for packed documents, and waits for the device to do so.
        position_ids=position_ids if packed else None,
    )
    # Flash attention finds the documents of a packed row by their positions.
    options = {"position_ids": position_ids} if packed else {}
    return Rows(mask, position_ids, document_lengths, options)


def prepare_segments(
    config: Phi3VConfig, segments: Sequence[Segment], inputs_embeds: Tensor
) -> Rows:
    """Prepare one row of segments; everything about it is known on the CPU beforehand.

    Raises:
        ValueError: The segments do not fill the row.
    """
    batch_size, length = inputs_embeds.shape[:2]
    total = sum(segment.length for segment in segments)
    if batch_size != 1 or total != length:
        raise ValueError(
            f"segments describe one row of {total} tokens, but the input has {batch_size} "
            f"row(s) of {length}"
        )
    device, kernel = inputs_embeds.device, config._attn_implementation
    positions, lengths = (
        torch.from_numpy(part)[None].to(device, non_blocking=True)
        for part in segment_positions(segments)
    )
    if kernel == "flash_attention_2":
        return Rows(None, positions, lengths, flash_arguments(segments, device))
    if kernel == "flex_attention":
        mask = flex_mask(segments, device, config.sliding_window)
        return Rows(mask, positions, lengths, {})
    return Rows(None, positions, lengths, {"segments": segments})


def causal_mask(
    config: Phi3VConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    *,
    past_key_values: Cache | None,
    position_ids: Tensor | None,
) -> Any:
    """Make the mask of padded, cached or packed rows in the form of the chosen kernel.

    Args:
        config: Configuration with the chosen kernel.
        inputs_embeds: (B, T, any size); only shape, type and device count.
        attention_mask: (B, U), 4-D as made before, or None.
        past_key_values: Cache or None.
        position_ids: (B, T) or None.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    # By place: the cache has another name since transformers 5.24.
    return create_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        past_key_values,
        position_ids=position_ids,
        and_mask_function=_window(config, past + inputs_embeds.shape[1]),
    )


def _window(config: Phi3VConfig, total_length: int) -> Callable[..., Any] | None:
    """Return the mask of the sliding window, or None while it cannot bite."""
    window = config.sliding_window
    if window is None or total_length <= window + 1:
        return None
    return lambda batch, head, query, key: query - key <= window


def _document_lengths(
    position_ids: Tensor, attention_mask: Tensor | None, *, packed: bool
) -> Tensor:
    if attention_mask is not None and attention_mask.dim() == 2:
        return attention_mask.sum(dim=-1, keepdim=True)
    if packed:
        return packed_document_lengths(position_ids)
    return (position_ids.amax(dim=-1, keepdim=True) + 1).clamp(min=1)
