"""Answers of a model: prompts rendered from conversations, and many of them answered in a batch.

A prompt is rendered by the processor's one rendering, so a turn reads in generation as it did in
training. Letters: B conversations, T tokens of the longest prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings


@dataclass(frozen=True)
class Conversation:
    """Messages that end with a question, and their pictures.

    Attributes:
        messages: Turns with "role" and "content"; pictures are tags ``<|image_k|>`` from 1 on.
        pictures: One for every tag, in order.
    """

    messages: Sequence[Mapping[str, str]]
    pictures: Sequence[Image.Image] = ()


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        text: The text, with image tags.
        image_token_counts: Tokens of every picture.
        num_tokens: Tokens of the whole prompt.
    """

    text: str
    image_token_counts: list[int]
    num_tokens: int


def render_prompt(processor: Phi3VProcessor, conversation: Conversation) -> Prompt:
    """Render a conversation and count its tokens; no crop is made.

    Raises:
        ValueError: The last message is no question, or tags and pictures do not match.
    """
    messages = conversation.messages
    if messages and messages[-1].get("role") != "user":
        raise ValueError(
            f"the last message is the {messages[-1].get('role')}'s; end with the user's question"
        )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    sizes = [picture.size for picture in conversation.pictures]
    counts = [processor.image_processor.num_image_tokens(*size) for size in sizes]
    return Prompt(text, counts, len(processor.encode(text, counts).input_ids))


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: Without special tokens and outer white space.
        num_tokens: Generated tokens, the one that ends the answer included.
        is_complete: Whether the model ended it; otherwise it was cut off at the most tokens.
    """

    text: str
    num_tokens: int
    is_complete: bool


def answer_batch(
    model: Any,
    processor: Phi3VProcessor,
    conversations: Sequence[Conversation],
    settings: GenerationSettings | None = None,
) -> list[str]:
    """Answer B conversations in one batch; as `generate_answers`, the texts alone."""
    return [one.text for one in generate_answers(model, processor, conversations, settings)]


def generate_answers(
    model: Any,
    processor: Phi3VProcessor,
    conversations: Sequence[Conversation],
    settings: GenerationSettings | None = None,
) -> list[Answer]:
    """Answer B conversations in one batch.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it.
        processor: Its processor.
        conversations: At least one; their numbers of pictures may differ.
        settings: How to choose the answers; None is greedy.

    Returns:
        B answers in the order of the conversations.

    Raises:
        ValueError: A conversation does not end with a question, is longer than the model can read,
            or its tags and pictures do not match.
    """
    inputs = prepare_inputs(model, processor, conversations, settings or GenerationSettings())
    rows = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
    stop_ids = set(model.config.stop_token_ids)
    answers = []
    for row in rows:
        ends = next((place for place, one in enumerate(row) if one in stop_ids), None)
        num_tokens = len(row) if ends is None else ends + 1
        answers.append(Answer(decode_answer(processor, row), num_tokens, ends is not None))
    return answers


def decode_answer(processor: Phi3VProcessor, ids: list[int]) -> str:
    """Turn the ids of an answer into text without special tokens and outer whitespace."""
    text = processor.tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


def check_length(model: Any, prompt: Prompt) -> int:
    """Return how many tokens are left for the answer."""
    limit = model.config.max_position_embeddings
    if prompt.num_tokens >= limit:
        raise ValueError(
            f"the prompt has {prompt.num_tokens} tokens, {sum(prompt.image_token_counts)} of them "
            f"of {len(prompt.image_token_counts)} picture(s), but the model reads at most "
            f"{limit - 1}; use fewer pictures, fewer crops or a shorter text"
        )
    return limit - prompt.num_tokens


def prepare_inputs(
    model: Any,
    processor: Phi3VProcessor,
    conversations: Sequence[Conversation],
    settings: GenerationSettings,
) -> dict[str, Any]:
    """Make model inputs and options of ``generate``; prompts (B, T) are padded at their left."""
    prompts = [render_prompt(processor, conversation) for conversation in conversations]
    room = min(check_length(model, prompt) for prompt in prompts)
    settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
    pictures = [list(conversation.pictures) for conversation in conversations]
    inputs = dict(
        processor(
            [prompt.text for prompt in prompts],
            pictures if any(pictures) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            pixel_format="compact",
        )
    )
    # Every prompt holds a BOS; a pad id would bring a repetition penalty into padded rows only.
    padding = inputs["attention_mask"] == 0
    inputs["input_ids"].masked_fill_(padding, processor.tokenizer.bos_token_id)
    # Sizes stay on the CPU, where the model reads them.
    moved = {key: inputs[key].to(model.device) for key in inputs if key != "image_sizes"}
    # An image place without its picture cannot be read again in the next step.
    banned = {"suppress_tokens": [processor.image_token_id]}
    return inputs | moved | settings.options() | banned
