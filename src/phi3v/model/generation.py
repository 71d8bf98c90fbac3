"""What generation needs beyond the library: stop ids, images of expanded rows, the rotary switch.

Letters: B rows, T tokens, N images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.crops import num_image_tokens
from phi3v.model.rows import causal_mask
from phi3v.model.vision import image_grids


def images_per_row(
    input_ids: Tensor, image_sizes: Tensor | Sequence[Sequence[int]], config: Phi3VConfig
) -> list[list[int]]:
    """List the image numbers of every row, by counting places.

    Args:
        input_ids: (B, T).
        image_sizes: (N, 2) padded sizes in row order.
        config: Gives crop size and image token id.

    Returns:
        One list of indices into the N images for each row.
    """
    places = (input_ids == config.image_token_id) | (input_ids < 0)
    counts = [
        num_image_tokens(grid, config.vision.tokens_per_side)
        for grid in image_grids(image_sizes, config.crop_size)
    ]
    rows, image = [], 0
    for remaining in places.sum(dim=1).tolist():
        own = []
        while remaining > 0 and image < len(counts):
            own.append(image)
            remaining -= counts[image]
            image += 1
        rows.append(own)
    return rows


def select_images(
    pixel_values: Tensor,
    image_sizes: Tensor | Sequence[Sequence[int]],
    order: Sequence[int],
    crop_size: int,
) -> tuple[Tensor, list[list[int]]]:
    """Take images by number, repeated or reordered, from either pixel layout."""
    sizes = [[int(height), int(width)] for height, width in image_sizes]
    if pixel_values.dtype == torch.uint8:
        counts = [grid.rows * grid.columns for grid in image_grids(sizes, crop_size)]
        groups = pixel_values.split(counts)
        pixels = torch.cat([groups[image] for image in order])
    else:
        pixels = pixel_values[torch.tensor(order, device=pixel_values.device)]
    return pixels, [sizes[image] for image in order]


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
        """Repeat every row, with all of its images, for beams and several samples."""
        pixels, sizes = (
            model_kwargs.pop("pixel_values", None),
            model_kwargs.pop("image_sizes", None),
        )
        if pixels is not None and expand_size > 1:
            assert input_ids is not None
            rows = images_per_row(input_ids, sizes, self.config)
            order = [image for row in rows for _ in range(expand_size) for image in row]
            pixels, sizes = select_images(pixels, sizes, order, self.config.crop_size)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if pixels is not None:
            model_kwargs |= {"pixel_values": pixels, "image_sizes": sizes}
        if input_ids is not None:
            # Published ids of image places are negative, which samplers and streamers cannot read.
            input_ids = input_ids.masked_fill(input_ids < 0, self.config.image_token_id)
        return input_ids, model_kwargs

    @staticmethod
    def create_masks_for_generate(
        config: Phi3VConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Make the mask of a step with a static cache; the library's own has one per layer type."""
        return causal_mask(
            config,
            inputs_embeds,
            attention_mask,
            past_key_values=past_key_values,
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
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step; encode all again in the step in which a row passes the rotary switch.

        Keys in the cache were rotated with the short factors. From
        ``original_max_position_embeddings`` + 1 tokens on the long factors hold for the whole row,
        so what is cached is of no use. Rows that stay short keep theirs.
        """
        lengths = (
            attention_mask.sum(dim=-1, keepdim=True)
            if attention_mask is not None and attention_mask.dim() == 2
            else torch.full((input_ids.shape[0], 1), input_ids.shape[1], device=input_ids.device)
        )
        if self._crosses_switch(lengths, input_ids, past_key_values, next_sequence_length):
            assert past_key_values is not None
            if past_key_values.is_compileable:
                past_key_values.reset()
            else:
                past_key_values = DynamicCache(config=self.config)
            next_sequence_length, is_first_iteration = None, True
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs | {"document_lengths": lengths}

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
        if self.config.rope_scaling is None:
            return False
        return bool(((lengths > switch) & (lengths - num_new_tokens <= switch)).any())
