"""The model below the head: token and image embeddings and the decoder.

Letters: B rows, T tokens of this call, U tokens seen with the cache, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast

from phi3v.model.clip import CLIPEmbeddings
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.decoder import Phi3VDecoderLayer, Phi3VRMSNorm
from phi3v.model.rotary import rotary_tables
from phi3v.model.rows import prepare_rows, prepare_segments
from phi3v.model.segments import Segment
from phi3v.model.vision import Phi3VImageEmbedding, check_image_tokens


class Phi3VPreTrainedModel(PreTrainedModel):
    """What the library needs to know to load, shard, quantise and checkpoint the model."""

    config_class = Phi3VConfig
    config: Phi3VConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3VDecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    # The original's second name of the token table, and buffers of older releases: absent from the
    # published files, present in pickled ones.
    _keys_to_ignore_on_load_unexpected = [
        r"vision_embed_tokens\.wte\.weight",
        r"rotary_emb\.inv_freq",
        r"embeddings\.position_ids",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, Phi3VRMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)
        elif isinstance(module, CLIPEmbeddings):
            init.normal_(module.class_embedding, mean=0.0, std=std)


class Phi3VModel(Phi3VPreTrainedModel):
    """Embeddings of text and images, and the decoder."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        # No padding_idx: the published class blocks the gradient of row 32000 although the id ends
        # every training text. Padding takes part in no loss, so the row needs no protection.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        if config.has_vision:
            self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.layers = nn.ModuleList(
            Phi3VDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = Phi3VRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        # Set by a trainer whose ranks must all run the vision side, or whose vision side trains.
        self.link_vision_without_images = False
        # Set where the tower is frozen and whole: then nobody has to run it for others.
        self.link_past_tower = False
        self.post_init()

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None,
        image_places: Tensor | None = None,
        image_embeds: Tensor | None = None,
        **stored: Any,
    ) -> Tensor:
        """Look up the tokens and write the image tokens to their places.

        Args:
            input_ids: (B, T); a place of an image is ``image_token_id`` or any negative id (the
                published form).
            pixel_values: Pixels of all images of all rows in row order, or None.
            image_sizes: (N, 2) padded heights and widths, or None.
            image_places: (M,) places of the image tokens in the flattened (B * T), or None to find
                them.
            image_embeds: (M, H) the image tokens, if they are made already, instead of pixels.
            **stored: ``image_features`` and ``are_stored``, see ``phi3v.model.vision``; together
                with ``image_places``.

        Returns:
            (B, T, H).

        Raises:
            ValueError: Number of places and of image tokens differ, or one of the two is missing.
        """
        has_pictures = pixel_values is not None or stored.get("image_features") is not None
        if has_pictures and image_places is not None and image_sizes is not None:
            # In the order of the rows without pictures: under ZeRO-3 all ranks gather as they go.
            embeds = self.embed_tokens(input_ids.clamp(min=0))
            features = self.vision_embed_tokens(pixel_values, image_sizes, **stored)
            check_image_tokens(image_places.numel(), features.shape[0])
            flat = embeds.flatten(0, 1).index_copy(0, image_places, features.to(embeds.dtype))
            return self.embed_dropout(flat.view_as(embeds))
        places = (input_ids == self.config.image_token_id) | (input_ids < 0)
        embeds = self.embed_tokens(input_ids.masked_fill(places, 0))
        if image_embeds is None and pixel_values is None:
            # Only looked at where it costs no wait for the device and no break of a compiled step.
            looks = places.device.type == "cpu" and not torch.compiler.is_compiling()
            if looks and bool(places.any()):
                raise ValueError(
                    f"input_ids hold {int(places.sum())} image places but no pixel_values came "
                    "along; pass the processor's pixel_values and image_sizes"
                )
            return self._linked(embeds) if self.link_vision_without_images else embeds
        if image_embeds is None:
            if image_sizes is None:
                raise ValueError("pixel_values came without image_sizes; pass the processor's both")
            image_embeds = self.vision_embed_tokens(pixel_values, image_sizes)
        features = image_embeds.to(embeds)
        if places.device.type == "cpu":
            check_image_tokens(int(places.sum()), features.shape[0])
        else:
            torch._assert_async(places.sum() == features.shape[0])
        index = (places.flatten().cumsum(0) - 1).clamp(min=0, max=features.shape[0] - 1)
        spread = features[index].view_as(embeds)
        return self.embed_dropout(torch.where(places[..., None], spread, embeds))

    def _linked(self, embeds: Tensor) -> Tensor:
        """Run one black crop through the vision side and add it times zero.

        All ranks must touch the same modules, whatever their batches hold.
        """
        size = self.config.crop_size
        vision = self.config.vision
        if self.link_past_tower:
            features = embeds.new_zeros(2, vision.patches_per_side**2, vision.hidden_size)
            nothing = 0.0 * self.vision_embed_tokens(None, [(size, size)], features, [True]).sum()
            return self.embed_dropout(embeds + nothing.to(embeds.dtype))
        crop = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=embeds.device)
        nothing = 0.0 * self.vision_embed_tokens(crop, [(size, size)]).sum().to(embeds.dtype)
        # ZeRO-3 counts this module too.
        return self.embed_dropout(embeds + nothing)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        use_cache: bool | None = None,
        document_lengths: Tensor | None = None,
        segments: Sequence[Sequence[int]] | None = None,
        image_places: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        are_stored: Sequence[bool] | None = None,
        output_hidden_states: bool = False,
        rotary: tuple[Tensor, Tensor] | None = None,
        output_places: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Decode; see ``Phi3VForCausalLM.forward`` for the arguments.

        But for the `output_places` (L,) of the flattened (B * T), the last layer ends with its
        attention; None means all.

        Returns:
            ``last_hidden_state`` (B, T, H), or (1, L, H), after the final norm, the cache, and,
            when asked for, ``hidden_states``: the input of every layer and the final output.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, not both and not neither")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(
                input_ids,
                pixel_values,
                image_sizes,
                image_places,
                image_embeds,
                image_features=image_features,
                are_stored=are_stored,
            )
        if segments is not None:
            row = prepare_segments(self.config, [Segment(*one) for one in segments], inputs_embeds)
        else:
            if past_key_values is None and self._wants_cache(
                use_cache, attention_mask, position_ids
            ):
                past_key_values = DynamicCache(config=self.config)
            row = prepare_rows(
                self.config,
                inputs_embeds,
                attention_mask,
                position_ids,
                past_key_values=past_key_values,
                document_lengths=document_lengths,
            )
        if rotary is None:
            rotary = rotary_tables(
                self.config, row.position_ids, row.document_lengths, dtype=inputs_embeds.dtype
            )
        hidden_states, collected = inputs_embeds, []
        for layer in self.layers:
            if output_hidden_states:
                collected.append(hidden_states)
            if layer is self.layers[-1]:
                kwargs["output_places"] = output_places
            options = {"past_key_values": past_key_values, **row.options, **kwargs}
            hidden_states = layer(hidden_states, rotary, attention_mask=row.mask, **options)
        hidden_states = self.norm(hidden_states)
        states = (*collected, hidden_states) if output_hidden_states else None
        return BaseModelOutputWithPast(hidden_states, past_key_values, states)

    def _wants_cache(
        self, use_cache: bool | None, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> bool:
        if self.training or not (self.config.use_cache if use_cache is None else use_cache):
            return False
        if position_ids is None or attention_mask is not None:
            return True
        # A cache makes the library's mask builder forget where packed documents begin.
        return not bool((position_ids[:, 1:] == 0).any())
