"""The published sizes, on no device: names, shapes and counts of the real checkpoints."""

import pytest
import torch

from phi3v import Phi3VConfig, Phi3VForCausalLM

LAYER = {
    "input_layernorm.weight": (3072,),
    "post_attention_layernorm.weight": (3072,),
    "self_attn.qkv_proj.weight": (9216, 3072),
    "self_attn.o_proj.weight": (3072, 3072),
    "mlp.gate_up_proj.weight": (16384, 3072),
    "mlp.down_proj.weight": (3072, 8192),
}
TOWER = "model.vision_embed_tokens.img_processor.vision_model."
TOWER_LAYER = {
    **{f"layer_norm{n}.{kind}": (1024,) for n in (1, 2) for kind in ("weight", "bias")},
    **{f"self_attn.{name}_proj.weight": (1024, 1024) for name in ("q", "k", "v", "out")},
    **{f"self_attn.{name}_proj.bias": (1024,) for name in ("q", "k", "v", "out")},
    **{"mlp.fc1.weight": (4096, 1024), "mlp.fc1.bias": (4096,)},
    **{"mlp.fc2.weight": (1024, 4096), "mlp.fc2.bias": (1024,)},
}
EXPECTED = {
    "model.embed_tokens.weight": (32064, 3072),
    "model.norm.weight": (3072,),
    "lm_head.weight": (32064, 3072),
    "model.vision_embed_tokens.glb_GN": (1, 1, 4096),
    "model.vision_embed_tokens.sub_GN": (1, 1, 1, 4096),
    "model.vision_embed_tokens.img_projection.0.weight": (3072, 4096),
    "model.vision_embed_tokens.img_projection.0.bias": (3072,),
    "model.vision_embed_tokens.img_projection.2.weight": (3072, 3072),
    "model.vision_embed_tokens.img_projection.2.bias": (3072,),
    f"{TOWER}embeddings.class_embedding": (1024,),
    f"{TOWER}embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    f"{TOWER}embeddings.position_embedding.weight": (577, 1024),
    **{f"{TOWER}pre_layrnorm.{kind}": (1024,) for kind in ("weight", "bias")},
    **{f"{TOWER}post_layernorm.{kind}": (1024,) for kind in ("weight", "bias")},
    **{f"model.layers.{n}.{name}": shape for n in range(32) for name, shape in LAYER.items()},
    **{
        f"{TOWER}encoder.layers.{n}.{name}": shape
        for n in range(24)
        for name, shape in TOWER_LAYER.items()
    },
}


@pytest.fixture(scope="module")
def model() -> Phi3VForCausalLM:
    factors = [1.0] * 48
    config = Phi3VConfig(
        max_position_embeddings=131072,
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        embd_layer={"embedding_cls": "image", "hd_transform_order": "sub_glb"},
        img_processor={"name": "clip_vision_model", "image_dim_out": 1024},
    )
    with torch.device("meta"):
        return Phi3VForCausalLM(config)


def test_the_592_published_names_have_their_shapes(model: Phi3VForCausalLM) -> None:
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(EXPECTED) == 592
    assert found == EXPECTED


def test_the_model_has_the_published_number_of_parameters(model: Phi3VForCausalLM) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_146_621_440


def test_nothing_but_parameters_is_kept(model: Phi3VForCausalLM) -> None:
    assert not dict(model.named_buffers())


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "su"}, "must hold exactly"),
        ({"type": "linear", "short_factor": [1.0], "long_factor": [1.0]}, "type must be one of"),
        ({"type": "su", "short_factor": [1.0], "long_factor": [1.0]}, "list of 48 numbers"),
        ({"type": "su", "short_factor": ["a"] * 48, "long_factor": [1.0] * 48}, "48 numbers"),
    ],
)
def test_rotary_settings_that_no_checkpoint_has_are_refused(scaling: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VConfig(rope_scaling=scaling)


def test_the_later_name_of_the_scaling_is_taken() -> None:
    factors = [1.0] * 48
    scaling = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    assert Phi3VConfig(rope_scaling=scaling).rope_scaling == scaling
