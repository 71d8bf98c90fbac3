"""Rows without padding: whole documents behind one another, some of them sharing a prefix.

A packed row is a list of segments. A plain document is one segment that sees only itself. Documents
that begin with the same tokens (the same pictures and the same text before the question) are a
tree: the common prefix is one segment, and each continuation is a segment that sees the prefix and
itself. Every token then has exactly the keys, positions and rotary factors that it has in its
document alone.

Letters: T tokens of the row, Q tokens of a segment, P tokens of its prefix, W width of a head.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from phi3v.model.attention import eager_attention


class Segment(NamedTuple):
    """One run of tokens of a packed row.

    Attributes:
        length: Number of tokens.
        prefix_start: Place in the row where the prefix that it continues begins.
        prefix_length: Number of tokens of that prefix; 0 for a document of its own.
    """

    length: int
    prefix_start: int = 0
    prefix_length: int = 0


def segment_positions(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Find position and document length of every token of a row.

    Returns:
        int64 (T,) positions inside each document and int64 (T,) lengths of its document. For a
        shared prefix the length is that of its longest continuation: the packer keeps continuations
            of one tree on one side of
        the rotary switch.
    """
    starts = np.cumsum([0, *(segment.length for segment in segments)])
    total = {int(start): segment.length for start, segment in zip(starts, segments, strict=False)}
    for segment in segments:
        if segment.prefix_length:
            whole = segment.prefix_length + segment.length
            total[segment.prefix_start] = max(total[segment.prefix_start], whole)
    positions, lengths = [], []
    for start, segment in zip(starts, segments, strict=False):
        positions.append(segment.prefix_length + np.arange(segment.length))
        own = segment.prefix_length + segment.length if segment.prefix_length else total[int(start)]
        lengths.append(np.full(segment.length, own))
    return np.concatenate(positions), np.concatenate(lengths)


def segment_mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Make the mask of one segment.

    Returns:
        Bool (Q, P + Q), True where a query sees a key; None where plain causal attention says the
        same.
    """
    length, prefix = segment.length, segment.prefix_length
    reach = prefix + length if window is None else window
    if not prefix and length <= reach + 1:
        return None
    query = torch.arange(prefix, prefix + length, device=device)[:, None]
    key = torch.arange(prefix + length, device=device)[None]
    return (key <= query) & (query - key <= reach)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    *,
    scaling: float,
    dropout: float,
    window: int | None,
    eager: bool,
) -> Tensor:
    """Attend segment by segment; nothing of the size T x T is made.

    Args:
        module: Attention module.
        query: (1, heads, T, W).
        key: (1, key heads, T, W).
        value: (1, key heads, T, W).
        segments: Segments of the row, T tokens together.
        scaling: Factor on the scores.
        dropout: Probability of dropping a weight.
        window: Number of tokens to the left that are seen, or None.
        eager: Use plain matrix products instead of SDPA.

    Returns:
        (1, T, heads, W).
    """
    outputs = []
    grouped = query.shape[1] != key.shape[1]
    lengths = [segment.length for segment in segments]
    # Split at once: each slice would give the whole row a gradient of its own.
    queries, keys, values = (one.split(lengths, dim=2) for one in (query, key, value))
    at = dict(zip(accumulate(lengths, initial=0), range(len(lengths)), strict=False))
    for number, segment in enumerate(segments):
        seen = keys[number], values[number]
        if segment.prefix_length:
            first, count = segment.prefix_start, segment.prefix_length
            piece = at.get(first)
            if piece is not None and lengths[piece] == count:
                prefix = keys[piece], values[piece]
            else:
                prefix = key.narrow(2, first, count), value.narrow(2, first, count)
            seen = (
                torch.cat([prefix[0], seen[0]], dim=2),
                torch.cat([prefix[1], seen[1]], dim=2),
            )
        mask = segment_mask(segment, window, query.device)
        if eager:
            additive = _additive(mask, segment.length, query)
            output, _ = eager_attention(
                module, queries[number], *seen, additive, scaling=scaling, dropout=dropout
            )
        else:
            output = nn.functional.scaled_dot_product_attention(
                queries[number],
                *seen,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            ).transpose(1, 2)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _additive(mask: Tensor | None, length: int, query: Tensor) -> Tensor:
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)[None, None]


def flash_arguments(segments: Sequence[Segment], device: torch.device) -> dict[str, Any]:
    """Describe the segments to FlashAttention's kernel for sequences of different lengths.

    It aligns its causal mask to the end of queries and keys, so that a continuation sees its whole
    prefix when the prefix's keys stand before its own.

    Returns:
        Keyword arguments of the kernel; with ``key_index`` (number of keys,), places of the row to
        take keys from, when a prefix is shared.
    """
    queries = np.cumsum([0, *(segment.length for segment in segments)])
    keys = np.cumsum([0, *(segment.prefix_length + segment.length for segment in segments)])
    arguments = {
        "cu_seq_lens_q": torch.from_numpy(queries.astype(np.int32)).to(device, non_blocking=True),
        "cu_seq_lens_k": torch.from_numpy(keys.astype(np.int32)).to(device, non_blocking=True),
        "max_length_q": max(segment.length for segment in segments),
        "max_length_k": max(segment.prefix_length + segment.length for segment in segments),
    }
    if any(segment.prefix_length for segment in segments):
        index = np.concatenate(
            [
                np.r_[
                    segment.prefix_start : segment.prefix_start + segment.prefix_length,
                    start : start + segment.length,
                ]
                for start, segment in zip(queries, segments, strict=False)
            ]
        )
        arguments["key_index"] = torch.from_numpy(index).to(device, non_blocking=True)
    return arguments


def flex_mask(segments: Sequence[Segment], device: torch.device, window: int | None) -> Any:
    """Make FlexAttention's block mask: a token sees earlier ones of its segment and its prefix."""
    from torch.nn.attention.flex_attention import create_block_mask

    number, prefix = [], []
    starts = np.cumsum([0, *(segment.length for segment in segments)])
    by_start = {int(start): index for index, start in enumerate(starts[:-1])}
    for index, segment in enumerate(segments):
        number.append(np.full(segment.length, index))
        seen = by_start[segment.prefix_start] if segment.prefix_length else index
        prefix.append(np.full(segment.length, seen))
    own, before, position = (
        torch.from_numpy(np.concatenate(part)).to(device)
        for part in (number, prefix, [segment_positions(segments)[0]])
    )
    reach = position.numel() if window is None else window

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        related = (own[query] == own[key]) | (before[query] == own[key])
        distance = position[query] - position[key]
        return related & (distance >= 0) & (distance <= reach)

    total = int(starts[-1])
    return create_block_mask(sees, None, None, total, total, device=str(device))
