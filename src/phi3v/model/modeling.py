"""Phi-3-vision with its head: logits, loss, generation.

Letters: B rows, T tokens of this call, U tokens seen with the cache, N images, C crops, M image
tokens, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from phi3v.model.backbone import Phi3VModel, Phi3VPreTrainedModel
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.generation import Phi3VGenerationMixin
from phi3v.model.loss import find_label_places, supervised_loss


# The mixin's overrides name the keywords that they use. It comes first: it overrides loading too.
class Phi3VForCausalLM(  # type: ignore[misc]
    Phi3VGenerationMixin, Phi3VPreTrainedModel, GenerationMixin
):
    """Phi-3-vision with its language-model head; one class for both published models."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor | Sequence[Sequence[int]]
    ) -> Tensor:
        """Encode images to their image tokens (M, H), for ``image_embeds`` of `forward`."""
        return self.model.vision_embed_tokens(pixel_values, image_sizes)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        document_lengths: Tensor | None = None,
        segments: Sequence[Sequence[int]] | None = None,
        label_places: Tensor | None = None,
        image_places: Tensor | None = None,
        image_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute logits, or the loss where labels are given.

        Args:
            input_ids: (B, T); image places hold ``config.image_token_id`` or a negative id.
            attention_mask: (B, U), 0 at padding; None means no padding.
            position_ids: (B, T). Without a mask and a cache, positions that restart at 0 mark
                packed documents, which do not see each other.
            past_key_values: Cache of the library.
            inputs_embeds: (B, T, H) instead of ``input_ids``.
            labels: (B, T), ``-100`` where nothing is supervised.
            pixel_values: Float (N, num_crops + 1, 3, S, S) or uint8 (C, 3, S, S); see
                ``Phi3VImageProcessor``.
            image_sizes: (N, 2) padded heights and widths in pixels, images of all rows in row
                order.
            use_cache: Return a cache; never while training.
            logits_to_keep: Compute only the last so many logits; 0 means all.
            num_items_in_batch: Number of supervised tokens of the whole optimizer step.
            document_lengths: (B, T) or (B, 1) length of each token's document for the rotary
                factors; None finds it from mask and positions. For rows that are padded on the
                right these stand in for the mask: no token sees what comes after it.
            segments: Documents of one packed row (B is 1), as (length, prefix start, prefix
                length); see ``phi3v.model.segments``. Mask and positions follow from it.
            label_places: (L,) places of the labels in the flattened (B * T), if the caller knows
                them: finding them makes the host wait for the device.
            image_places: (M,) places of the image tokens likewise.
            image_embeds: (M, H) image tokens, if they are made already, instead of pixels.
            output_hidden_states: Return the input of every layer.
            return_dict: False gives a plain tuple.
            **kwargs: ``image_features`` and ``are_stored``, see ``phi3v.model.vision``; ``rotary``,
                tables that are made already; the rest is handed to the attention kernel.

        Returns:
            ``loss`` (scalar) when labels are given, else ``logits`` (B, T or logits_to_keep,
            vocabulary) float32.

        Raises:
            ValueError: Images and their places in ``input_ids`` do not fit together.
        """
        output_places = None
        if labels is not None:
            label_places = find_label_places(labels) if label_places is None else label_places
            # Without a label all is decoded: all ranks must run the same modules. With one, too:
            # compiled code would be made again for a single row.
            if label_places.numel() > 1 and not output_hidden_states:
                output_places = label_places - 1
        elif not output_hidden_states:
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            output_places = _last_places(tokens, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache if labels is None else False,
            document_lengths=document_lengths,
            segments=segments,
            image_places=image_places,
            image_embeds=image_embeds,
            output_hidden_states=bool(output_hidden_states),
            output_places=output_places,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss, logits = None, None
        if labels is None:
            if output_places is not None:
                hidden_states = hidden_states.unflatten(1, (-1, logits_to_keep))[0]
            logits = self.lm_head(hidden_states[:, -logits_to_keep:]).float()
        else:
            loss = supervised_loss(
                hidden_states,
                labels,
                self.lm_head,
                num_items_in_batch=num_items_in_batch,
                label_places=label_places,
                are_selected=output_places is not None,
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result if return_dict is not False else result.to_tuple()


def _last_places(tokens: Tensor | None, count: int) -> Tensor | None:
    """Name the last places of each row of (B, T, ...), flattened; None where that is all."""
    if tokens is None or not 0 < count < tokens.shape[1]:
        return None
    places = torch.arange(tokens.shape[0] * tokens.shape[1], device=tokens.device)
    return places.view(tokens.shape[:2])[:, -count:].flatten()
