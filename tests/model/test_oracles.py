"""The library's decoder and tower, with the same tensors, give the same numbers."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from phi3v import Phi3VForCausalLM

Make = Callable[..., Phi3VForCausalLM]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TOWER = "model.vision_embed_tokens.img_processor."


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [40, 64, 65, 100])
def test_decoder_equals_the_librarys(make_model: Make, length: int, attention: str) -> None:
    model = make_model(attention)
    ours = model.config
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads max_position_embeddings original_max_position_embeddings rms_norm_eps"
    )
    oracle = Phi3ForCausalLM(
        Phi3Config(
            **{name: getattr(ours, name) for name in names.split()},
            rope_scaling=ours.rope_scaling | {"type": "longrope"},
            pad_token_id=None,
            attn_implementation=attention,
        )
    ).eval()
    weights = {k: v for k, v in model.state_dict().items() if "vision_embed_tokens" not in k}
    oracle.load_state_dict(weights)
    ids = torch.randint(3, 400, (2, length))
    with torch.no_grad():
        assert_close(model(ids).logits, oracle(ids).logits, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tower_equals_the_librarys(make_model: Make, attention: str) -> None:
    model = make_model(attention)
    size = model.config.vision
    oracle = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            image_size=size.image_size,
            patch_size=size.patch_size,
            attn_implementation=attention,
        )
    ).eval()
    # The library has dropped one level of the published names.
    weights = {
        name.removeprefix(f"{TOWER}vision_model."): value
        for name, value in model.state_dict().items()
        if name.startswith(TOWER)
    }
    prefix = "vision_model." if hasattr(oracle, "vision_model") else ""
    oracle.load_state_dict({f"{prefix}{name}": value for name, value in weights.items()})
    crops = torch.randn(3, 3, size.image_size, size.image_size)
    with torch.no_grad():
        expected = oracle(crops, output_hidden_states=True).hidden_states[-2][:, 1:]
        found = model.model.vision_embed_tokens.encode_crops(crops)
    assert_close(found, expected, **CLOSE)
