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
    assert config.num_key_value_heads is not None
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    size, rank = precision.element, precision.rank
    if regime == "full":
        return precision.stream * hidden
    attention = size * query + WIDE * config.num_attention_heads
    adapters = 4 * size * rank
    # What adapted products give, of a token.
    outer = (query + 2 * key, hidden, 2 * inner, hidden)
    if regime == "selective":
        products = query + 2 * key + hidden + 2 * inner
        if rank:
            products += hidden + sum(width for width in outer if rank * NARROW >= width)
        if precision.has_dora and precision.dropout_mask:
            # The base's product is made of the dropped input, too.
            products += sum(outer)
        return precision.stream * hidden + attention + size * products + adapters
    kept = size * (2 * hidden + (query + 2 * key) + 3 * inner)
    kept += 2 * (precision.stream * hidden + WIDE) + attention + adapters
    if precision.many_segments:
        kept += size * query
    if precision.has_dora:
        kept += 2 * size * sum(outer)
    if precision.dropout_mask and rank:
        # A mask for each adapter's input; the attention output is kept twice.
        kept += precision.dropout_mask * (2 * hidden + query + inner)
        kept += 0 if precision.many_segments else size * query
    return kept


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
    trained_crops: int = 0,
) -> int:
    """Estimate what a forward pass keeps and what making one layer again adds.

    Args:
        config: Sizes of the model.
        regime: What layers keep.
        precision: Bytes of numbers, and adapters.
        tokens: Tokens of the batch.
        trained_crops: Crops of the batch, the global ones too; 0 for a frozen tower.
    """
    decoder = layer_bytes(config, regime, precision)
    total = config.num_hidden_layers * decoder * tokens
    again = layer_bytes(config, "none", precision) - decoder if regime != "none" else 0
    if not (trained_crops and config.has_vision):
        return total + again * tokens
    tower = tower_layer_bytes(config, regime, precision)
    total += config.num_vision_layers_used * tower * trained_crops
    tower_again = tower_layer_bytes(config, "none", precision) - tower
    return total + max(again * tokens, tower_again * trained_crops if regime != "none" else 0)
