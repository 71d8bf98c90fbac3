"""What generation needs beyond the library: stop ids, images, the rotary switch.

Pictures are encoded once for an answer, whatever becomes of the cache. transformers calls the cache
``past_key_values`` up to 5.23 and ``cache`` from 5.24 on; the model takes the first, and what the
library calls takes both. Letters: B rows, T tokens, M image tokens, H hidden size.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.rotary import rotary_tables
from phi3v.model.rows import causal_mask
from phi3v.model.vision import check_image_tokens

_NAMES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
# What ``generate`` calls a cache that it starts from.
CACHE_ARGUMENT = "cache" if "cache" in _NAMES else "past_key_values"


class Phi3VGenerationMixin:
    """Overrides of ``PreTrainedModel`` and ``GenerationMixin``; stands before them in the bases."""

    config: Phi3VConfig

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint; generation stops at ``<|end|>`` and ``<|endoftext|>``.

        The published files name ``</s>`` as the end, which the models never write.
        """
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]  # a mixin
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.set_stop_tokens()
        return loaded

    def set_stop_tokens(self) -> None:
        """Let generation stop at ``<|end|>`` and ``<|endoftext|>`` and pad with the config's id.

        The image token is never written: read back, it would be a place without an image.
        """
        generation = self.generation_config  # type: ignore[attr-defined]
        generation.bos_token_id = self.config.bos_token_id
        generation.eos_token_id = self.config.stop_token_ids
        generation.pad_token_id = self.config.pad_token_id
        generation.suppress_tokens = [self.config.image_token_id]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Encode the images, and repeat every row with its own for beams and several samples."""
        embeds = model_kwargs.pop("image_embeds", None)
        if embeds is None and model_kwargs.get("image_sizes") is not None:
            pixels, sizes = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_sizes")
            if pixels is not None:
                embeds = self.get_image_features(pixels, sizes)  # type: ignore[attr-defined]
        if embeds is not None and expand_size > 1:
            assert input_ids is not None
            per_row = self._image_places(input_ids).sum(dim=1).tolist()
            check_image_tokens(sum(per_row), embeds.shape[0])
            rows = embeds.split(per_row)
            embeds = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if embeds is not None:
            model_kwargs["image_embeds"] = embeds
        if input_ids is not None:
            # Published ids of image places are negative, which samplers and streamers cannot read.
            input_ids = input_ids.masked_fill(input_ids < 0, self.config.image_token_id)
        return input_ids, model_kwargs

    def _image_places(self, input_ids: Tensor) -> Tensor:
        return (input_ids == self.config.image_token_id) | (input_ids < 0)

    @staticmethod
    def create_masks_for_generate(
        config: Phi3VConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        **_: Any,
    ) -> Any:
        """Make the mask of a step with a static cache; the library's own has one per layer type."""
        return causal_mask(
            config,
            inputs_embeds,
            attention_mask,
            past_key_values=past_key_values if cache is None else cache,
            position_ids=position_ids,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step; before the step in which a row passes the rotary switch, encode again.

        Keys in the cache were rotated with the short factors. From
        ``original_max_position_embeddings`` + 1 tokens on the long factors hold for the whole row,
        so what is cached is of no use. Rows that stay short get the same keys as before.

        A first step with a cache reads only the images behind what is cached.
        """
        past_key_values = past_key_values if cache is None else cache
        lengths = (
            attention_mask.sum(dim=-1, keepdim=True)
            if attention_mask is not None and attention_mask.dim() == 2
            else torch.full((input_ids.shape[0], 1), input_ids.shape[1], device=input_ids.device)
        )
        image_embeds = kwargs.pop("image_embeds", None)
        if self._crosses_switch(lengths, input_ids, past_key_values, next_sequence_length):
            assert past_key_values is not None and next_sequence_length is not None
            cached = slice(0, input_ids.shape[1] - next_sequence_length)
            position_ids = kwargs.get("position_ids")
            past_key_values = self._encode_again(
                past_key_values,
                input_ids=input_ids[:, cached],
                attention_mask=None if attention_mask is None else attention_mask[:, cached],
                position_ids=None if position_ids is None else position_ids[:, cached],
                image_embeds=self._embeds_of(input_ids, cached, image_embeds),
                document_lengths=lengths,
            )
        if is_first_iteration or past_key_values is None:
            num_new = next_sequence_length or input_ids.shape[1]
            new = slice(input_ids.shape[1] - num_new, None)
            kwargs["image_embeds"] = self._embeds_of(input_ids, new, image_embeds)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length,
            past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        if past_key_values is not None and past_key_values.is_compileable:
            # Made here, since they begin with constants of the host: a compiled step with those
            # cannot be recorded on a GPU.
            dtype = self.get_input_embeddings().weight.dtype  # type: ignore[attr-defined]
            position_ids = inputs["position_ids"]
            inputs["rotary"] = rotary_tables(self.config, position_ids, lengths, dtype=dtype)
        return inputs | {"document_lengths": lengths}

    def _embeds_of(
        self, input_ids: Tensor, columns: slice, image_embeds: Tensor | None
    ) -> Tensor | None:
        """Take the image tokens of some columns out of those of all (M, H); None for no token."""
        if image_embeds is None or columns.start == 0 and columns.stop is None:
            return image_embeds
        chosen = torch.zeros_like(input_ids, dtype=torch.bool)
        chosen[:, columns] = True
        places = self._image_places(input_ids)
        check_image_tokens(int(places.sum()), image_embeds.shape[0])
        embeds = image_embeds[chosen[places].to(image_embeds.device)]
        return embeds if len(embeds) else None

    def _encode_again(self, cache: Cache, **inputs: Any) -> Cache:
        """Fill a cache anew; never compiled, since it happens once in a conversation."""
        if cache.is_compileable:
            cache.reset()
        else:
            cache = DynamicCache(config=self.config)
        self(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)  # type: ignore[operator]
        return cache

    def _crosses_switch(
        self,
        lengths: Tensor,
        input_ids: Tensor,
        past_key_values: Cache | None,
        num_new_tokens: int | None,
    ) -> bool:
        switch = self.config.original_max_position_embeddings
        # No row is longer than the columns: short batches are decided without asking the device.
        if past_key_values is None or num_new_tokens is None or input_ids.shape[1] <= switch:
            return False
        if self.config.rope_scaling is None or num_new_tokens == input_ids.shape[1]:
            return False
        return bool(((lengths > switch) & (lengths - num_new_tokens <= switch)).any())
