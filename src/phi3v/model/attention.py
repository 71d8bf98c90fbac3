"""The plain attention that the registry of the library falls back to.

Letters: B rows, T queries, U keys, W width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend with plain matrix products; the softmax runs in float32 for the decoder.

    Args:
        module: Attention module; ``num_key_value_groups`` queries share a key head.
        query: (B, heads, T, W).
        key: (B, key heads, U, W).
        value: (B, key heads, U, W).
        attention_mask: (B, 1, T, U) added to the scores, or None.
        scaling: Factor on the scores.
        dropout: Probability of dropping a weight while training.

    Returns:
        Output (B, T, heads, W) and weights (B, heads, T, U).
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
