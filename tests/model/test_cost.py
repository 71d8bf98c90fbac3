import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from phi3v import Phi3VConfig, load_model
from phi3v.model.cost import forward_cost


def test_the_formula_counts_what_a_forward_pass_executes(tiny_folder) -> None:
    model = load_model(tiny_folder, attn_implementation="eager")
    size = model.config.crop_size
    tokens = 4 * 4 * 2 + 1 + 2 * 4  # one crop and the global one: 41 places
    ids = torch.full((1, tokens + 60), 5)
    ids[0, :tokens] = model.config.image_token_id
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, pixel_values=pixels, image_sizes=[(size, size)], logits_to_keep=1)
    cost = forward_cost(model.config)
    expected = cost.per_token * (tokens + 60) + 2 * cost.per_crop
    expected += cost.per_image_token * tokens + cost.per_label
    # The eager kernel multiplies the whole square of the scores; half of it is needed.
    expected += 2 * cost.per_squared_token * (tokens + 60) ** 2
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


def published_config() -> Phi3VConfig:
    factors = [1.0] * 48
    return Phi3VConfig(
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        embd_layer={"embedding_cls": "image"},
        img_processor={"name": "clip_vision_model"},
    )


def test_costs_of_the_published_sizes() -> None:
    cost = forward_cost(published_config())
    assert cost.per_token == pytest.approx(7.078e9, rel=1e-3)
    assert cost.per_label == pytest.approx(0.367e9, rel=1e-2)
    # Both together are the products of all layers, and of the head.
    assert cost.per_token + cost.per_label == pytest.approx(7.248e9 + 0.197e9, rel=1e-3)
    assert cost.per_image_token == pytest.approx(0.044e9, rel=1e-2)
    assert cost.per_crop == pytest.approx(366e9, rel=1e-2)
