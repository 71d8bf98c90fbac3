"""Operations that a run cannot do without: what each part costs, times its passes.

Letter: U units, that is documents, or groups of them that share a beginning.
"""

from typing import Any

import numpy as np

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.cost import forward_cost
from phi3v.training.parts import PROJECTION, TOWER, Plan, own_parameters

# Operations of a token for each number of an adapter: forward, and for both gradients.
OF_ADAPTER = 6


def needed_operations(
    config: Phi3VConfig,
    plan: Plan,
    *,
    lengths: np.ndarray,
    crops: np.ndarray,
    labels: np.ndarray,
    squares: np.ndarray | None = None,
    adapters: tuple[int, int] = (0, 0),
    keeps_features: bool = False,
) -> np.ndarray:
    """Count the operations that the gradients of each unit cannot do without.

    A product is made once forward, once more for the gradient of its input where something below
    trains, and once more for that of its weight where it trains itself.

    Args:
        config: Sizes of the model.
        plan: What trains.
        lengths: (U,) tokens.
        crops: (U,) crops, the global ones too.
        labels: (U,) supervised tokens.
        squares: (U,) twice the pairs of tokens that attend to each other; None takes the squared
            lengths, as of single documents.
        adapters: Numbers in adapters of the decoder, see `count_adapters`.
        keeps_features: Whether those of a frozen tower are kept, so that it runs in no later epoch.

    Returns:
        (U,) operations.
    """
    cost = forward_cost(config)
    lengths = np.asarray(lengths, dtype=float)
    squares = lengths**2 if squares is None else squares
    decoder = 3 if plan.language == "full" else 2
    tower = {"frozen": int(not keeps_features), "LoRA": 2, "full": 3}[plan.vision]
    projection = 3 if plan.projection != "frozen" else 1 if plan.vision == "frozen" else 2
    # Separators are left out: less than a tenth of an image.
    crop_tokens = config.vision.tokens_per_side**2 if config.has_vision else 0
    return (
        (decoder * cost.per_token + OF_ADAPTER * adapters[0]) * lengths
        + 3 * cost.per_squared_token * squares
        + (decoder * cost.per_label + OF_ADAPTER * adapters[1]) * labels
        + (tower * cost.per_crop + projection * cost.per_image_token * crop_tokens) * crops
    )


def count_adapters(model: Any) -> tuple[int, int]:
    """Count the numbers in adapters of the decoder: that every token, and that labels alone, pass.

    The last layer ends, but for supervised places, with its attention.
    """
    last = f".layers.{model.config.num_hidden_layers - 1}."
    ends = tuple(last + name for name in ("self_attn.o_proj.", "mlp.")) + ("lm_head.",)
    counts = [0, 0]
    for name, parameter, part in own_parameters(model):
        if "lora_" in name and part not in (TOWER, PROJECTION):
            counts[any(end in name for end in ends)] += parameter.numel()
    return counts[0], counts[1]
