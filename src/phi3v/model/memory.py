"""How many bytes a training step keeps for its backward pass, from sizes alone.

Counted per token and layer of the decoder, and per crop and layer of a tower that trains; a frozen
tower keeps nothing. The formulas are those of ``phi3v.model.recompute`` and of the elementwise
steps; the tests count the same bytes on small models.

Letters: H hidden size, Q and K widths of all queries and of all keys, F inner width of the MLP, D
and G the same of the tower, R rank of the adapters.
"""

from dataclasses import dataclass

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.recompute import NARROW, Regime

WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class Precision:
    """What decides the bytes of an activation beside the sizes of the model.

    Attributes:
        element: Bytes of a number in matrix products: 2 or 4.
        stream: Bytes of a number between layers; 4 where trained norms and embeddings keep the
            states in float32 under bfloat16 products.
        rank: Rank of adapters on all products of the decoder; 0 where its weights train themselves.
        dropout_mask: Bytes of the mask of a dropped input of an adapter: 0 without dropout, 1 on a
            GPU, ``element`` on a CPU.
        has_dora: Whether the adapters are DoRA's, which keeps both of the results that it scales.
        many_segments: Whether a row without padding runs on SDPA segment by segment, which joins
            the outputs into a copy.
    """

    element: int = 2
    stream: int = 2
    rank: int = 0
    dropout_mask: int = 0
    has_dora: bool = False
    many_segments: bool = False


def layer_bytes(config: Phi3VConfig, regime: Regime, precision: Precision) -> int:
    """Count what one decoder layer keeps of a token.

    Source:
        ``none``: both norms' inputs and outputs, rotated queries and keys, values, the attention
        output, the fused gate and its product. ``selective``: the input and all
        products. ``full``: the input.
    """
    return sum(_split_layer_bytes(config, regime, precision))


def _split_layer_bytes(
    config: Phi3VConfig, regime: Regime, precision: Precision
) -> tuple[int, int]:
    """Count up to the attention and after it, where the last layer goes on for labels alone."""
    assert config.num_key_value_heads is not None
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    projected = query + 2 * config.num_key_value_heads * config.head_dim
    size, stream, rank = precision.element, precision.stream, precision.rank
    if regime == "full":
        return stream * hidden, 0
    # What the products after the attention give.
    outer = (hidden, 2 * inner, hidden)
    before = stream * hidden + size * (query + rank) + WIDE * config.num_attention_heads
    after = 3 * size * rank
    if regime == "selective":
        before += size * projected
        after += size * (hidden + 2 * inner)
        if rank:
            before += size * projected * (rank * NARROW >= projected)
            after += size * (hidden + sum(width for width in outer if rank * NARROW >= width))
        if precision.has_dora and precision.dropout_mask:
            # The base's product is made of the dropped input, too.
            before += size * projected
            after += size * sum(outer)
        return before, after
    before += WIDE + size * (hidden + projected)
    after += WIDE + stream * hidden + size * (hidden + 3 * inner)
    if precision.many_segments:
        after += size * query
    if precision.has_dora:
        before += 2 * size * projected
        after += 2 * size * sum(outer)
    if precision.dropout_mask and rank:
        # A mask for each adapter's input; the attention output is kept twice.
        before += precision.dropout_mask * hidden
        after += precision.dropout_mask * (hidden + query + inner)
        after += 0 if precision.many_segments else size * query
    return before, after


def tower_layer_bytes(config: Phi3VConfig, regime: Regime, precision: Precision) -> int:
    """Count what one layer of a tower that trains keeps of a crop."""
    vision = config.vision
    width, inner, size = vision.hidden_size, vision.intermediate_size, precision.element
    places = vision.patches_per_side**2 + 1
    if regime == "full":
        return places * precision.stream * width
    attention = size * width + WIDE * vision.num_attention_heads
    if regime == "selective":
        products = 4 * width + inner
        return places * (precision.stream * width + attention + size * products)
    norms = 2 * (precision.stream * width + size * width + 2 * WIDE)
    return places * (norms + attention + size * (3 * width + 2 * inner))


def activation_bytes(
    config: Phi3VConfig,
    regime: Regime,
    precision: Precision,
    *,
    tokens: int,
    labels: int | None = None,
    trained_crops: int = 0,
) -> int:
    """Estimate what a forward pass keeps and what making one layer again adds.

    Args:
        config: Sizes of the model.
        regime: What layers keep.
        precision: Bytes of numbers, and adapters.
        tokens: Tokens of the batch.
        labels: Supervised ones; None takes all.
        trained_crops: Crops of the batch, the global ones too; 0 for a frozen tower.
    """
    places = tokens if labels is None else min(labels, tokens)
    before, after = _split_layer_bytes(config, regime, precision)
    whole = _split_layer_bytes(config, "none", precision)
    others = (config.num_hidden_layers - 1) * (before + after) * tokens
    last = before * tokens + after * places
    if regime != "none":
        # The last layer is made again first; when the one before it is, nothing of it is left.
        again = (whole[0] + whole[1] - before - after) * tokens
        last = max(whole[0] * tokens + whole[1] * places, again if others else 0)
    total = others + last
    if not (trained_crops and config.has_vision):
        return total
    tower = tower_layer_bytes(config, regime, precision)
    kept = others + before * tokens + after * places
    kept += config.num_vision_layers_used * tower * trained_crops
    total += config.num_vision_layers_used * tower * trained_crops
    tower_again = tower_layer_bytes(config, "none", precision) - tower
    return max(total, kept + tower_again * trained_crops)
