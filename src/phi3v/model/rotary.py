"""Rotary positions with short and long factors ("su" scaling), chosen per document.

Letters: B rows, T tokens, E half a head.
"""

import math

import torch
from torch import Tensor

from phi3v.model.configuration import Phi3VConfig


def attention_scale(config: Phi3VConfig) -> float:
    """Return the factor on cos and sin that goes with the scaling, for short and long texts.

    Source:
        Published modelling code; 1.190238 for a context stretched from 4,096 to 131,072.
    """
    if config.rope_scaling is None:
        return 1.0
    original = config.original_max_position_embeddings
    stretch = config.max_position_embeddings / original
    if stretch <= 1:
        return 1.0
    if config.rope_scaling["type"] == "yarn":
        return 0.1 * math.log(stretch) + 1.0
    return math.sqrt(1 + math.log(stretch) / math.log(original))


def inverse_frequencies(config: Phi3VConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the inverse frequencies of the short and of the long regime in float32.

    They are made from the config on every call and never stored: a buffer would be cast with the
        weights, and in
    bfloat16 the angle is off by radians after a few thousand tokens.

    Returns:
        Two tensors (E,); equal where the config has no scaling.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
    base = config.rope_theta ** (half / config.head_dim)
    if config.rope_scaling is None:
        return 1.0 / base, 1.0 / base
    short, long = (
        # A copy that does not wait: this runs in every step.
        torch.tensor(config.rope_scaling[key], dtype=torch.float32).to(device, non_blocking=True)
        for key in ("short_factor", "long_factor")
    )
    return 1.0 / (short * base), 1.0 / (long * base)


def rotary_tables(
    config: Phi3VConfig, position_ids: Tensor, document_lengths: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Make the cos and sin tables of a batch, once for all layers.

    A document longer than ``original_max_position_embeddings`` takes the long factors, every other
    one the short factors, whatever stands beside it in the batch.

    Args:
        config: Configuration with the factors.
        position_ids: (B, T) positions inside each document.
        document_lengths: (B, T) or (B, 1) number of tokens of the document that each token belongs
            to.
        dtype: Type of the tables; the angles are computed in float32 in any case.

    Returns:
        cos and sin, each (B, T, 2E).
    """
    short, long = inverse_frequencies(config, position_ids.device)
    is_long = document_lengths > config.original_max_position_embeddings
    frequencies = torch.where(is_long[..., None], long, short)
    # Products and sines keep float32 under autocast too.
    angles = position_ids[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    scale = attention_scale(config)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, T, 2E) by tables (B, T, 2E), half against half."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def packed_document_lengths(position_ids: Tensor) -> Tensor:
    """Find the length of every token's document in rows whose positions restart at 0.

    Args:
        position_ids: (B, T).

    Returns:
        (B, T) lengths; nothing is copied to the host.
    """
    document = (position_ids == 0).cumsum(dim=1)
    counts = torch.zeros(
        position_ids.shape[0],
        position_ids.shape[1] + 1,
        dtype=torch.long,
        device=position_ids.device,
    )
    counts.scatter_add_(1, document, torch.ones_like(document))
    return counts.gather(1, document)
