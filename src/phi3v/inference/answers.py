"""One answer as a stream of pieces. Whole batches are answered by `phi3v.model.answers`."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from phi3v.inference.prefilling import generate_rows
from phi3v.inference.prefixes import PrefixCache
from phi3v.inference.prompts import prepare_prompt
from phi3v.inference.streaming import TextPieces, stream_ids, stream_pieces
from phi3v.model.answers import (
    Conversation,
    answer_batch,
    check_length,
    decode_answer,
    prepare_inputs,
    render_prompt,
)
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings


def stream_answer(
    model: Any,
    processor: Phi3VProcessor,
    conversation: Conversation,
    settings: GenerationSettings | None = None,
    prefixes: PrefixCache | None = None,
) -> Generator[str]:
    """Answer one conversation, piece by piece; the pieces join to the answer.

    The prompt is checked at once, the generation starts with the first piece. A beam search gives
    its answer in one piece, because it is chosen at the end; it uses and keeps no prefix.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it.
        processor: Its processor.
        conversation: Ends with a question.
        settings: How to choose the answer; None is greedy.
        prefixes: What is kept of earlier conversations; gets this one too.

    Raises:
        ValueError: As `answer_batch` does.
    """
    settings = settings or GenerationSettings()
    if settings.num_beams > 1:
        check_length(model, render_prompt(processor, conversation))
        return _answer_at_once(model, processor, conversation, settings)
    if prefixes is None:
        inputs = prepare_inputs(model, processor, [conversation], settings)
        return _stream(model.generate, processor, inputs)
    prompt = render_prompt(processor, conversation)
    room = check_length(model, prompt)
    options = replace(settings, max_new_tokens=min(settings.max_new_tokens, room)).options()
    generate = partial(
        generate_rows,
        model,
        [prepare_prompt(processor, conversation, prompt.num_tokens)],
        prefixes,
        pad_id=processor.tokenizer.bos_token_id,
        suppress_tokens=[processor.image_token_id],
    )
    return _stream(generate, processor, options)


def _stream(
    generate: Callable[..., Any], processor: Phi3VProcessor, inputs: dict[str, Any]
) -> Generator[str]:
    with closing(stream_ids(generate, inputs)) as ids:
        yield from stream_pieces(ids, text_pieces(processor))


def text_pieces(processor: Phi3VProcessor) -> TextPieces:
    """Make the text of one answer from its ids."""
    return TextPieces(
        lambda seen: decode_answer(processor, seen),
        lambda token_id: _is_open(processor, token_id),
    )


def _is_open(processor: Phi3VProcessor, token_id: int) -> bool:
    """Tell whether an id is a byte, or leaves no text (the model knows more ids than have text)."""
    token = processor.tokenizer.convert_ids_to_tokens(token_id)
    added = processor.tokenizer.added_tokens_decoder.get(token_id)
    return token is None or str(token).startswith("<0x") or (added is not None and added.special)


def _answer_at_once(
    model: Any, processor: Phi3VProcessor, conversation: Conversation, settings: GenerationSettings
) -> Generator[str]:
    yield from answer_batch(model, processor, [conversation], settings)
