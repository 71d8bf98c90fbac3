"""The original training step, written plainly from the published rules.

It uses the weights of one of our models, but no forward code of ours: rows and crops are padded,
all layers of the tower run, images are arranged one by one with sizes read from tensors, each layer
makes its own rotary tables, every layer is checkpointed, and the float32 logits of all places are
made, shifted and copied. Letters: B rows, T places, N images, K crops with the global one.
"""

import math
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.models import IMAGE_TOKEN_ID
from phi3v.data.collator import Collator
from phi3v.data.encoding import Example
from phi3v.model.vision import crops_from_compact, image_grids


def original_batch(examples: list[Example], num_crops: int) -> dict[str, Any]:
    """Pad rows, and pixels to ``num_crops`` + 1 float crops an image, as the original does.

    Returns:
        ``input_ids`` with negative image places, ``attention_mask`` and ``labels`` (B, T),
        ``pixel_values`` float (N, num_crops + 1, 3, S, S), ``image_sizes`` int64 (N, 2).
    """
    batch = Collator(0, IMAGE_TOKEN_ID)(examples)
    places, lengths = torch.arange(batch["labels"].shape[1]), batch.pop("document_lengths")
    batch["attention_mask"] = (places < lengths).long()
    if "pixel_values" not in batch:
        return batch
    grids = image_grids(batch["image_sizes"], batch["pixel_values"].shape[-1])
    flat = crops_from_compact(batch["pixel_values"], grids)
    padded = flat.new_zeros(len(grids), num_crops + 1, *flat.shape[1:])
    start = len(grids)
    for image, grid in enumerate(grids):
        number = grid.rows * grid.columns
        padded[image, 0] = flat[image]
        padded[image, 1 : number + 1] = flat[start : start + number]
        start += number
    ids = batch["input_ids"]
    batch["input_ids"] = torch.where(ids == IMAGE_TOKEN_ID, -1, ids)
    return batch | {"pixel_values": padded, "image_sizes": torch.tensor(batch["image_sizes"])}


def original_loss(model: Any, batch: dict[str, Any], *, eager: bool = True) -> Tensor:
    """Run the forward pass.

    Args:
        model: Bare or wrapped by PEFT.
        batch: From ``original_batch``.
        eager: Attention by plain matrix products, the only kernel that the original runs without a
            GPU; else SDPA without a mask, which is what its GPU kernel comes closest to.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    config, backbone = whole.config, whole.model
    hidden = _embed(backbone, batch)
    if not hidden.requires_grad:
        hidden.requires_grad_(True)
    mask = _mask(batch["attention_mask"], hidden.dtype) if eager else None
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    for layer in backbone.layers:
        hidden = checkpoint(
            _decoder_layer, layer, hidden, mask, positions, config, use_reentrant=True
        )
    logits = whole.lm_head(_rms_norm(backbone.norm, hidden)).float()
    shifted = logits[..., :-1, :].contiguous()
    targets = batch["labels"][..., 1:].contiguous()
    return nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets.view(-1))


def _embed(backbone: Any, batch: dict[str, Any]) -> Tensor:
    ids = batch["input_ids"]
    places = torch.nonzero(ids < 0, as_tuple=False)
    hidden = backbone.embed_tokens(ids.clamp_min(0))
    if "pixel_values" not in batch:
        return hidden
    vision = backbone.vision_embed_tokens
    features = _tower(vision.img_processor.vision_model, batch["pixel_values"].flatten(0, 1))
    features = features.view(*batch["pixel_values"].shape[:2], *features.shape[1:])
    arranged = []
    for image, size in enumerate(batch["image_sizes"]):
        height, width = (int(side.item()) // 336 for side in size)
        arranged.append(_arrange(features[image], height, width, vision))
    tokens = vision.img_projection(torch.cat(arranged))
    where = places[:, 0], places[:, 1]
    return hidden.index_put(where, tokens.to(hidden.dtype), accumulate=False)


def _tower(transformer: Any, pixels: Tensor) -> Tensor:
    embeddings = transformer.embeddings
    patches = embeddings.patch_embedding(pixels.to(embeddings.patch_embedding.weight.dtype))
    patches = patches.flatten(2).transpose(1, 2)
    first = embeddings.class_embedding.expand(len(patches), 1, -1)
    hidden = torch.cat([first, patches], dim=1) + embeddings.position_embedding.weight
    hidden = transformer.pre_layrnorm(hidden)
    states = [hidden]
    for layer in transformer.encoder.layers:
        if hidden.requires_grad:
            hidden = checkpoint(_tower_layer, layer, hidden, use_reentrant=True)
        else:
            hidden = _tower_layer(layer, hidden)
        states.append(hidden)
    transformer.post_layernorm(hidden[:, 0])
    return states[-2][:, 1:]


def _tower_layer(layer: Any, hidden: Tensor) -> Tensor:
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    hidden = hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    inner = layer.mlp.fc1(layer.layer_norm2(hidden))
    return hidden + layer.mlp.fc2(inner * torch.sigmoid(1.702 * inner))


def _arrange(crops: Tensor, rows: int, columns: int, vision: Any) -> Tensor:
    """Lay one image out: its map, the separator, the global crop; (K, 576, D) to (M, 4 D)."""

    def merged(part: Tensor, height: int, width: int) -> Tensor:
        dim = part.shape[-1]
        blocks = part.view(len(part), 12, 2, 12, 2, dim).permute(0, 1, 3, 2, 4, 5)
        blocks = blocks.reshape(height, width, 12, 12, 4 * dim).permute(0, 2, 1, 3, 4)
        feature_map = blocks.reshape(12 * height, 12 * width, 4 * dim)
        newlines = vision.sub_GN[0].expand(12 * height, 1, -1)
        return torch.cat([feature_map, newlines], dim=1).flatten(0, 1)

    own = merged(crops[1 : rows * columns + 1], rows, columns)
    return torch.cat([own, vision.glb_GN[0], merged(crops[:1], 1, 1)])


def _mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the additive mask (B, 1, T, T) of causality and padding."""
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    allowed = causal[None, None] & attention_mask.bool()[:, None, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def _rms_norm(norm: Any, hidden: Tensor) -> Tensor:
    wide = hidden.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(hidden.dtype)


def _rotary(config: Any, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make the tables anew, from the longest place of the batch, as every layer does."""
    long = positions.max().item() + 1 > config.original_max_position_embeddings
    scaling = config.rope_scaling
    factors = torch.tensor(scaling["long_factor" if long else "short_factor"])
    powers = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / (factors * config.rope_theta**powers)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    ratio = config.max_position_embeddings / config.original_max_position_embeddings
    factor = math.sqrt(1 + math.log(ratio) / math.log(config.original_max_position_embeddings))
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _decoder_layer(
    layer: Any, hidden: Tensor, mask: Tensor | None, positions: Tensor, config: Any
) -> Tensor:
    attention, width = layer.self_attn, config.head_dim
    fused = attention.qkv_proj(_rms_norm(layer.input_layernorm, hidden))
    query, key, value = (
        part.unflatten(-1, (-1, width)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
    )
    cos, sin = _rotary(config, positions, value.dtype)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    if mask is None:
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        scores = query @ key.transpose(2, 3) / math.sqrt(width) + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        mixed = weights @ value
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    fused = layer.mlp.gate_up_proj(_rms_norm(layer.post_attention_layernorm, hidden))
    gate, up = fused.chunk(2, dim=-1)
    return hidden + layer.mlp.down_proj(up * nn.functional.silu(gate))
