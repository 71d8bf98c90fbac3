"""The Phi-3 decoder: pre-norm layers with fused projections and rotary positions.

Letters: B rows, T tokens of this call, U tokens seen with the cache, H hidden size, W width of a
head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from phi3v.model.attention import eager_attention
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.elementwise import rms_norm, swiglu
from phi3v.model.rotary import apply_rotary
from phi3v.model.segments import Segment, segment_attention


class Phi3VRMSNorm(nn.Module):
    """Root-mean-square norm in float32, rounded before the weight is applied, as published."""

    apply_norm = staticmethod(rms_norm)

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., H)."""
        return self.apply_norm(hidden_states, self.weight, self.eps)


class Phi3VAttention(nn.Module):
    """Causal attention with grouped key heads and one fused projection."""

    rotate = staticmethod(apply_rotary)

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        self.query_width = config.num_attention_heads * self.head_dim
        self.key_width = config.num_key_value_heads * self.head_dim
        self.qkv_proj = nn.Linear(
            config.hidden_size, self.query_width + 2 * self.key_width, bias=False
        )
        self.o_proj = nn.Linear(self.query_width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Any,
        past_key_values: Cache | None = None,
        output_places: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend; (B, T, H) to (B, T, H), or to (1, L, H).

        Args:
            hidden_states: (B, T, H).
            rotary: cos and sin tables, each (B, T, W).
            attention_mask: What the mask builder made for the chosen kernel.
            past_key_values: Cache that gets this layer's keys, rotated, and values.
            output_places: (L,) places of the flattened (B * T) whose output is wanted; None means
                all.
            **kwargs: Handed to the kernel (lengths of packed documents).
        """
        query, key, value = self.project(hidden_states, *rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output = self._attend(query, key, value, attention_mask, **kwargs)
        output = output.reshape(*hidden_states.shape[:2], self.query_width)
        return self.o_proj(_select(output, output_places))

    def project(
        self, hidden_states: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make rotated queries and keys, and values, each (B, its heads, T, W)."""
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        query, key, value = (
            part.view(shape).transpose(1, 2)
            for part in self.qkv_proj(hidden_states).split(
                [self.query_width, self.key_width, self.key_width], dim=-1
            )
        )
        # Under autocast the projection is narrower than the tables, and flash attention takes one
        # dtype only.
        query = self.rotate(query, cos, sin).to(value.dtype)
        key = self.rotate(key, cos, sin).to(value.dtype)
        # As a view, the values that attention keeps would keep queries and keys before their
        # rotation, too.
        return query, key, value.clone() if value.requires_grad else value

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        segments: Sequence[Segment] | None = None,
        key_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the chosen kernel; a packed row goes segment by segment where the kernel cannot."""
        window, dropout = self.config.sliding_window, self.config.attention_dropout
        if segments is not None:
            return segment_attention(
                self,
                query,
                key,
                value,
                segments,
                scaling=self.head_dim**-0.5,
                dropout=dropout if self.training else 0.0,
                window=window,
                eager=self.config._attn_implementation == "eager",
            )
        if key_index is not None:
            key, value = key.index_select(2, key_index), value.index_select(2, key_index)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            # The published window counts the tokens to the left; the library's kernels count the
            # token itself too.
            sliding_window=None if window is None else window + 1,
            **kwargs,
        )
        return output


class Phi3VMLP(nn.Module):
    """SiLU-gated MLP with one fused projection: gate rows first, then up rows."""

    activate = staticmethod(swiglu)

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform (..., H) to (..., H)."""
        return self.down_proj(self.activate(self.gate_up_proj(hidden_states)))


class Phi3VDecoderLayer(GradientCheckpointingLayer):
    """One pre-norm decoder layer."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Phi3VAttention(config, layer_idx)
        self.mlp = Phi3VMLP(config)
        self.input_layernorm = Phi3VRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Phi3VRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.resid_attn_dropout = nn.Dropout(config.resid_pdrop)
        self.resid_mlp_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        output_places: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Transform (B, T, H) to the shape of the attention's output; arguments as there."""
        attended = self.self_attn(
            self.input_layernorm(hidden_states),
            rotary,
            attention_mask,
            past_key_values,
            output_places,
            **kwargs,
        )
        return self.finish(_select(hidden_states, output_places), attended)

    def finish(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output and do the rest of the layer, all of one shape."""
        hidden_states = hidden_states + self.resid_attn_dropout(attended)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.resid_mlp_dropout(transformed)


def _select(states: Tensor, places: Tensor | None) -> Tensor:
    """Take places (L,) out of (B, T, width), as (1, L, width)."""
    return states if places is None else states.flatten(0, 1).index_select(0, places)[None]
