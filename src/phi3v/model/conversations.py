"""Conversations, as the library's chat interface gives them, become prompts with pictures."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from phi3v.model.text import CHAT_TEMPLATE, expand_parts, render_messages, reopen_answer

logger = logging.getLogger(__name__)


class Rendered(NamedTuple):
    """One or several conversations as prompts.

    Attributes:
        texts: One prompt per conversation, with a tag for every picture.
        images: The pictures of every conversation, or None where no conversation has any.
        batched: A list of conversations was given, not a single one.
    """

    texts: list[str]
    images: list[Any] | None
    batched: bool


def render_conversations(
    messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
    *,
    images: Any = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> Rendered:
    """Render one conversation, or a list of them, in the published form.

    Args:
        messages: Turns with `role` and `content`; a content is a string or a list of parts.
        images: Pictures of the conversation in order, if they are not among the parts; for several
            conversations one list each.
        add_generation_prompt: End with the opening of the assistant's next answer.
        continue_final_message: Leave the last turn, an answer, open.

    Raises:
        ValueError: If a role or part is wrong, or pictures come both ways.
    """
    batched = bool(messages) and not isinstance(messages[0], Mapping)
    conversations: Any = messages if batched else [messages]
    expanded = [expand_parts(conversation) for conversation in conversations]
    rendered = [render_messages(turns, add_generation_prompt) for turns, _ in expanded]
    texts = [text for text, _ in rendered]
    if continue_final_message:
        texts = [reopen_answer(text, answers) for text, answers in rendered]
    within = [pictures for _, pictures in expanded]
    if images is None:
        return Rendered(texts, within if any(within) else None, batched)
    if any(within):
        raise ValueError("pictures come both in the messages and in images; use one of them")
    if not batched:
        images = [images if isinstance(images, (list, tuple)) else [images]]
    return Rendered(texts, images, batched)


def usable_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options of a chat call those that other trainers add as a matter of course.

    Raises:
        ValueError: A mask of the answers is wanted.
    """
    # The published template leaves the BOS to the tokenizer, so it is never there twice.
    options.pop("add_special_tokens", None)
    if options.pop("return_assistant_tokens_mask", False):
        raise ValueError(
            "return_assistant_tokens_mask is not offered; phi3v train supervises answers only"
        )
    warn_of_template(options.pop("chat_template", None))
    return options


def warn_of_template(template: str | None) -> None:
    """Say that a chat template of a user's own is not used."""
    if template not in (None, CHAT_TEMPLATE):
        logger.warning(
            "The chat template differs from the published one and is not used: Phi-3-vision "
            "prompts are always rendered in the published form."
        )
