"""The table of parts, and to which part a parameter belongs."""

import pytest

from phi3v.training import parts
from phi3v.training.parts import Row, format_table, part_of

TOWER = "model.vision_embed_tokens.img_processor.vision_model"


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.self_attn.qkv_proj.weight", parts.LANGUAGE),
        ("model.norm.weight", parts.LANGUAGE),
        ("model.embed_tokens.weight", parts.EMBEDDINGS),
        ("model.embed_tokens.lora_embedding_A.default", parts.EMBEDDINGS),
        ("lm_head.base_layer.weight", parts.HEAD),
        (f"{TOWER}.embeddings.class_embedding", parts.TOWER),
        (f"{TOWER}.encoder.layers.22.mlp.fc1.lora_A.default.weight", parts.TOWER),
        (f"{TOWER}.encoder.layers.23.mlp.fc1.weight", parts.UNUSED),
        (f"{TOWER}.post_layernorm.weight", parts.UNUSED),
        ("model.vision_embed_tokens.modules_to_save.default.glb_GN", parts.SEPARATORS),
        ("model.vision_embed_tokens.sub_GN", parts.SEPARATORS),
        ("model.vision_embed_tokens.img_projection.2.bias", parts.PROJECTION),
    ],
)
def test_parameter_belongs_to_its_part(prefix: str, name: str, part: str) -> None:
    assert part_of(prefix + name, num_vision_layers_used=23) == part


def test_table_lines_up_and_ends_in_the_sum() -> None:
    rows = [Row("language model", "LoRA r=4", 1000, 20000, 1e-4), Row("head", "frozen", 0, 5, None)]
    assert format_table(rows).splitlines() == [
        "part            method    trainable      of  learning rate",
        "language model  LoRA r=4      1,000  20,000         0.0001",
        "head            frozen            0       5              -",
        "all                           1,000  20,005",
    ]
