"""The CLIP vision tower with the published parameter names.

Own modules instead of the library's: their saved names there depend on how the model was made. The
output is the library's, which the tests show.

Letters: K crops, P patches of a crop plus the class token, S side of a crop in pixels, D vision
width.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from phi3v.model.attention import eager_attention
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.elementwise import quick_gelu


class CLIPEmbeddings(nn.Module):
    """Cuts crops into patches and adds the class token and learned positions."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        size = config.vision
        num_positions = size.patches_per_side**2 + 1
        self.class_embedding = nn.Parameter(torch.randn(size.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, size.hidden_size, size.patch_size, stride=size.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(num_positions, size.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed crops (K, 3, S, S) to (K, P, D), patches row by row, the class token first."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        positions = torch.arange(patches.shape[1] + 1, device=patches.device)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding(positions)


class CLIPAttention(nn.Module):
    """Full attention inside one crop."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        size = config.vision
        self.config = config
        self.num_heads = size.num_attention_heads
        self.num_key_value_groups = 1
        self.head_dim = size.hidden_size // size.num_attention_heads
        self.dropout = size.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(size.hidden_size, size.hidden_size)
        self.k_proj = nn.Linear(size.hidden_size, size.hidden_size)
        self.v_proj = nn.Linear(size.hidden_size, size.hidden_size)
        self.out_proj = nn.Linear(size.hidden_size, size.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Attend within each crop; (K, P, D) to (K, P, D)."""
        shape = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, _ = attention(
            self,
            query,
            key,
            value,
            None,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=False,
        )
        return self.out_proj(output.reshape(hidden_states.shape))


class CLIPMLP(nn.Module):
    """Two linear layers with quick-GELU between them."""

    activate = staticmethod(quick_gelu)

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        size = config.vision
        self.fc1 = nn.Linear(size.hidden_size, size.intermediate_size)
        self.fc2 = nn.Linear(size.intermediate_size, size.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform (K, P, D) to (K, P, D)."""
        return self.fc2(self.activate(self.fc1(hidden_states)))


class CLIPEncoderLayer(GradientCheckpointingLayer):
    """One pre-norm transformer layer."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        size = config.vision
        self.layer_norm1 = nn.LayerNorm(size.hidden_size, eps=size.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(size.hidden_size, eps=size.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform (K, P, D) to (K, P, D)."""
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class CLIPEncoder(nn.Module):
    """The stack of layers; those behind the feature layer are kept but never run."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.num_layers_used = config.num_vision_layers_used
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.vision.num_hidden_layers)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Run the layers up to the feature layer; (K, P, D) to (K, P, D)."""
        for layer in self.layers[: self.num_layers_used]:
            hidden_states = layer(hidden_states)
        return hidden_states


class CLIPVisionTransformer(nn.Module):
    """Embeddings, the norm before the layers, and the layers."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        size = config.vision
        self.embeddings = CLIPEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(size.hidden_size, eps=size.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        # Part of the published files, but behind the feature layer: never run.
        self.post_layernorm = nn.LayerNorm(size.hidden_size, eps=size.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode crops (K, 3, S, S) to patch features (K, P - 1, D), the class token left out."""
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values))
        return self.encoder(hidden_states)[:, 1:]


class CLIPVisionTower(nn.Module):
    """Holds the transformer one level down, where the published names have it."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionTransformer(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode crops (K, 3, S, S) to patch features (K, P - 1, D)."""
        return self.vision_model(pixel_values)
