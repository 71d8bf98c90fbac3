"""What a document costs: floating-point operations by part, from sizes alone.

A multiplication with its addition counts as two. Letters: S tokens of a document, D width of a
layer.
"""

from dataclasses import dataclass

from phi3v.model.configuration import Phi3VConfig


@dataclass(frozen=True)
class ForwardCost:
    """Operations of one forward pass, by what they depend on.

    Attributes:
        per_token: Linear layers of the decoder, per token: all that stand before the last
            layer's attention.
        per_squared_token: Causal attention of the decoder, per squared token of a document.
        per_label: What follows it, to the head, per supervised place.
        per_image_token: The image projection, per image token.
        per_crop: The layers of the tower that run, per crop with the global one.
    """

    per_token: float
    per_squared_token: float
    per_label: float
    per_image_token: float
    per_crop: float


def forward_cost(config: Phi3VConfig) -> ForwardCost:
    """Count the operations of a forward pass.

    Args:
        config: Sizes of the model.

    Returns:
        Operations per token, squared token, label, image token and crop.
    """
    assert config.num_key_value_heads is not None
    width, layers = config.hidden_size, config.num_hidden_layers
    key_width = config.num_key_value_heads * config.head_dim
    projection = width * (width + 2 * key_width)
    after_attention = width * width + 3 * width * config.intermediate_size
    per_token = 2.0 * (layers * projection + (layers - 1) * after_attention)
    # Each query meets half of the keys: products of scores and of values.
    per_squared_token = 2.0 * layers * width
    per_label = 2.0 * (after_attention + width * config.vocab_size)
    if not config.has_vision:
        return ForwardCost(per_token, per_squared_token, per_label, 0, 0)
    vision = config.vision
    inner, places = vision.hidden_size, vision.patches_per_side**2 + 1
    per_layer = (
        2 * places * (4 * inner * inner + 2 * inner * vision.intermediate_size)
        + 4 * places * places * inner
    )
    patches = 2 * (places - 1) * inner * 3 * vision.patch_size**2
    return ForwardCost(
        per_token=per_token,
        per_squared_token=per_squared_token,
        per_label=per_label,
        per_image_token=2.0 * (4 * inner * width + width * width),
        per_crop=float(config.num_vision_layers_used * per_layer + patches),
    )
