"""From prompts to a filled cache: only what is not kept is decoded, and then kept in turn.

Each prompt is decoded by itself, but for its last token: long prompts fill a device alone, none is
padded, and each starts where its own kept beginning ends. Then all go on together. Letters: B
prompts, T tokens of the longest, W width of a head, H hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, StaticCache

from phi3v.inference.prefixes import Prefix, PrefixCache, regime
from phi3v.inference.prompts import PreparedPicture, PreparedPrompt, join_prompts
from phi3v.model.generation import CACHE_ARGUMENT

Layers = list[tuple[Tensor, ...]]
# Static caches have a multiple of so many tokens.
STATIC_STEP = 512


class Prefilled(NamedTuple):
    """Prompts of which all but the last token is decoded.

    Attributes:
        prompts: The B prompts.
        adapted: Whether the adapter was on.
        image_embeds: Image tokens of all pictures by their digests.
        inputs: Inputs of ``generate``, the cache and the image tokens among them.
    """

    prompts: Sequence[PreparedPrompt]
    adapted: bool
    image_embeds: dict[bytes, Tensor]
    inputs: dict[str, Any]


def generate_rows(
    model: Any,
    prompts: Sequence[PreparedPrompt],
    prefixes: PrefixCache,
    *,
    pad_id: int,
    adapted: bool = True,
    answer_lengths: Callable[[], Sequence[int]] | None = None,
    **options: Any,
) -> Any:
    """Generate answers in one batch, starting behind what is kept of the prompts, and keep them.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it, with the adapter already switched.
        prompts: B prompts.
        prefixes: What is kept.
        pad_id: Stands in front of shorter prompts.
        adapted: Whether the adapter is on.
        answer_lengths: Asked at the end how many tokens each answer has; None means as many as were
            generated.
        **options: Of ``generate``; ``cache_implementation`` may be "static".

    Returns:
        What ``generate`` returns with ``return_dict_in_generate``.
    """
    is_static = options.pop("cache_implementation", None) == "static"
    room = options["max_new_tokens"] if is_static else 0
    batch = prefill(model, prompts, prefixes, pad_id=pad_id, adapted=adapted, static_room=room)
    output = model.generate(**batch.inputs, **options, return_dict_in_generate=True)
    num_generated = output.sequences.shape[1] - batch.inputs["input_ids"].shape[1]
    lengths = answer_lengths() if answer_lengths else [num_generated] * len(prompts)
    for row, length in enumerate(lengths):
        if len(prompts[row].input_ids) <= prefixes.max_tokens:
            prefixes.keep(_copy_row(model.config, batch, output, row=row, length=length))
    return output


@torch.no_grad()
def prefill(
    model: Any,
    prompts: Sequence[PreparedPrompt],
    prefixes: PrefixCache,
    *,
    pad_id: int,
    adapted: bool = True,
    static_room: int = 0,
) -> Prefilled:
    """Decode all but the last token of each prompt, as far as it is not kept.

    Args:
        model: As in `generate_rows`.
        prompts: B prompts.
        prefixes: What is kept.
        pad_id: Stands in front of shorter prompts.
        adapted: Whether the adapter is on.
        static_room: Make a static cache with room for so many further tokens; 0 makes a dynamic
            one.
    """
    pictures = {picture.digest: picture for one in prompts for picture in one.pictures}
    image_embeds = _encode_pictures(model, list(pictures.values()), prefixes, adapted=adapted)
    rows = [_prefill_row(model, one, prefixes, image_embeds, adapted=adapted) for one in prompts]
    inputs = join_prompts(prompts, pad_id)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    num_columns = inputs["input_ids"].shape[1] + static_room
    cache: Cache = DynamicCache(config=model.config)
    if static_room:
        # Few lengths: each is compiled or recorded once.
        length = -(-num_columns // STATIC_STEP) * STATIC_STEP
        cache = StaticCache(config=model.config, max_cache_len=length)
    _join_rows(rows, cache)
    inputs[CACHE_ARGUMENT] = cache
    shown = [image_embeds[picture.digest] for one in prompts for picture in one.pictures]
    if shown:
        # Read again only where an answer passes the rotary switch.
        inputs["image_embeds"] = torch.cat(shown)
    return Prefilled(prompts, adapted, image_embeds, inputs)


def _encode_pictures(
    model: Any, pictures: Sequence[PreparedPicture], prefixes: PrefixCache, *, adapted: bool
) -> dict[bytes, Tensor]:
    """Get the image tokens of every picture; the tower runs once, for those that are new."""
    known = {one.digest: prefixes.image_embeds(one.digest, adapted=adapted) for one in pictures}
    new = [one for one in pictures if known[one.digest] is None]
    if new:
        pixels = torch.cat([one.pixel_values for one in new]).to(model.device)
        encoded = model.get_image_features(pixels, [one.image_size for one in new])
        parts = encoded.split([one.num_tokens for one in new])
        # Copies: a view would keep the others' memory.
        known |= {one.digest: part.clone() for one, part in zip(new, parts, strict=True)}
    return {digest: embeds for digest, embeds in known.items() if embeds is not None}


def _prefill_row(
    model: Any,
    prompt: PreparedPrompt,
    prefixes: PrefixCache,
    image_embeds: dict[bytes, Tensor],
    *,
    adapted: bool,
) -> Layers:
    num_tokens = len(prompt.input_ids)
    needed = regime(model.config, num_tokens, adapted=adapted)
    start, prefix = prefixes.longest(prompt.tokens()[: num_tokens - 1], needed)
    cache: Any = DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(prefix.keys_values if prefix else []):
        cache.update(keys[:, :, :start], values[:, :, :start], index)
    if start < num_tokens - 1:
        new = [image_embeds[one.digest] for one in prompt.pictures if one.start >= start]
        model(
            input_ids=torch.tensor([prompt.input_ids[start:-1]], device=model.device),
            past_key_values=cache,
            image_embeds=torch.cat(new) if new else None,
            # The last token counts too: with it, the prompt may be a long one.
            document_lengths=torch.tensor([[num_tokens]], device=model.device),
            use_cache=True,
            logits_to_keep=1,
        )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _join_rows(rows: list[Layers], cache: Cache) -> None:
    """Put B rows into an empty cache, padded at their left; the rows are emptied on the way."""
    longest = max(row[0][0].shape[2] for row in rows)
    for index in range(len(rows[0])):
        parts = zip(*(row.pop(0) for row in rows), strict=True)
        keys, values = (
            torch.cat([functional.pad(one, (0, 0, longest - one.shape[2], 0)) for one in part])
            for part in parts
        )
        cache.update(keys, values, index)


def _copy_row(config: Any, batch: Prefilled, output: Any, *, row: int, length: int) -> Prefix:
    """Copy a prompt and the first tokens of its answer; the cache may lack the last of them."""
    prompt, cache = batch.prompts[row], output.past_key_values
    num_columns = batch.inputs["input_ids"].shape[1]
    start = num_columns - len(prompt.input_ids)
    num_cached = int(cache.get_seq_length()) - start
    answer = output.sequences[row, num_columns : num_columns + length].tolist()
    tokens = prompt.tokens(answer)[:num_cached]
    columns = slice(start, start + len(tokens))
    layers = [
        tuple(states[row : row + 1, :, columns].clone() for states in (layer.keys, layer.values))
        for layer in cache.layers
    ]
    embeds = {one.digest: batch.image_embeds[one.digest] for one in prompt.pictures}
    # What was decoded behind a finished answer counts: it may have passed the switch.
    return Prefix(tokens, layers, embeds, regime(config, num_cached, adapted=batch.adapted))
