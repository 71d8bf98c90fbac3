"""Small models whose ratios carry over to the published sizes.

Crops, patches, tokens per crop, width of a head and every line of code are those of the published
models. Widths are shrunk so that a crop costs about as many decoder tokens as there, and the head
about as small a share of the decoder.
"""

from dataclasses import dataclass

import torch

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.modeling import Phi3VForCausalLM

IMAGE_TOKEN_ID = 3
FIRST_TEXT_ID = 4


@dataclass(frozen=True)
class Size:
    """Widths and depths of a model."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    vision: int
    vision_layers: int
    lora_rank: int

    @property
    def adapters(self) -> tuple[int, int]:
        """Numbers of the adapters on the four products of every decoder layer.

        Those after the attention of the last layer, which labels alone pass, stand apart.
        """
        d, f = self.hidden, self.intermediate
        end = self.lora_rank * ((d + d) + (d + 2 * f) + (f + d))
        return self.layers * self.lora_rank * (d + 3 * d) + (self.layers - 1) * end, end


SIZES = {
    "fm-tiny": Size(384, 4, 1024, 512, 96, 3, 8),
    "fm-small": Size(768, 8, 2048, 2048, 192, 5, 16),
    "mem-V": Size(384, 4, 1024, 32064, 96, 3, 8),
    # The smallest that still runs every line, for tests.
    "quick": Size(192, 2, 256, 512, 64, 2, 4),
}
# Widths of the published models; used without memory, to count operations.
PUBLISHED = Size(3072, 32, 8192, 32064, 1024, 24, 64)


def model_config(size: Size, vocabulary: int | None = None) -> Phi3VConfig:
    """Describe a model of some size with heads of 96 and, in the tower, of 48 or 64."""
    factors = [1.0 + 0.05 * index for index in range(48)]
    vision_head = 64 if size.vision % 64 == 0 else 48
    return Phi3VConfig(
        vocab_size=vocabulary or size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 96,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={
            "type": "su",
            "short_factor": factors,
            "long_factor": [8 * factor for factor in factors],
        },
        sliding_window=262144,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        image_token_id=IMAGE_TOKEN_ID,
        embd_layer={
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        img_processor={
            "name": "clip_vision_model",
            "model_name": "openai/clip-vit-large-patch14-336",
            "image_dim_out": size.vision,
            "num_img_tokens": 144,
            "clip_config": {
                "hidden_size": size.vision,
                "intermediate_size": 4 * size.vision,
                "num_hidden_layers": size.vision_layers,
                "num_attention_heads": size.vision // vision_head,
                "image_size": 336,
                "patch_size": 14,
            },
        },
        architectures=["Phi3VForCausalLM"],
        dtype="float32",
    )


@torch.no_grad()
def make_model(config: Phi3VConfig, dtype: torch.dtype = torch.float32) -> Phi3VForCausalLM:
    """Make a model with the same random weights in every process, on SDPA."""
    torch.manual_seed(0)
    model = Phi3VForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model.train()
