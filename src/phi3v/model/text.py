"""The one rendering of text: from chat messages to text, and from text with image tags to ids.

Training and inference both come through here, so a prompt has the same ids in both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<|image|>"
ROLES = ("system", "user", "assistant")
# Kept in tokenizer_config.json for other programs; `render_messages` gives the same text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + "
    "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != "
    "'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
)
_END = "<|end|>"
_TAG = re.compile(r"<\|image_([0-9]+)\|>")


@dataclass
class EncodedText:
    """Ids of a text, and where each of them comes from.

    Attributes:
        input_ids: Vocabulary ids; every place of an image holds the image token's id.
        spans: Start and end of each id in the text, in characters. A BOS has an empty span; all
            places of an image have the span of its tag. Two ids may share a character.
    """

    input_ids: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def image_tag(number: int) -> str:
    """Write the tag of the image with this number, counted from 1."""
    return f"<|image_{number}|>"


def count_image_tags(text: str) -> int:
    """Count the image tags in a text."""
    return len(_TAG.findall(text))


def expand_parts(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Turn contents that are lists of parts into strings with image tags.

    Args:
        messages: Turns whose content is a string or a list of parts: `{"type": "text", "text":
            ...}` or `{"type": "image"}` with an optional picture under "image" or "path". Tags in
            strings count when the images of the parts are numbered.

    Returns:
        The turns with string contents, and the pictures of the parts in order.

    Raises:
        ValueError: If a part is of another form, or only some of the images have a picture.
    """
    turns: list[dict[str, Any]] = []
    pictures: list[Any] = []
    num_images = 0
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            text = ""
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind == "image":
                    text += image_tag(num_images + count_image_tags(text) + 1) + "\n"
                    pictures += [
                        part[key] for key in ("image", "path") if part.get(key) is not None
                    ]
                elif kind == "text" and isinstance(part.get("text"), str):
                    text += part["text"]
                else:
                    raise ValueError(
                        f"message {index} has a part {part!r}, expected {{'type': 'text', 'text': "
                        "...}} or {{'type': 'image', 'image': picture}}"
                    )
            content = text
        if isinstance(content, str):
            num_images += count_image_tags(content)
        turns.append({**message, "content": content})
    if pictures and len(pictures) != num_images:
        raise ValueError(
            f"{len(pictures)} of {num_images} images in the messages come with a picture; give "
            "every image part its picture, or none and pass images"
        )
    return turns, pictures


def render_messages(
    messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation to text.

    Args:
        messages: Turns with `role` and `content`; images are tags in the content.
        add_generation_prompt: End with the opening of the assistant's next answer, unless the
            last turn is the assistant's.

    Returns:
        The text, and start and end of every answer in it with its `<|end|>`, in characters.

    Raises:
        ValueError: If there is no turn, or a turn has no content or an unknown role.

    Source:
        Chat template of the published checkpoints.
    """
    if not messages:
        raise ValueError("the conversation is empty, expected at least one message")
    text = ""
    answers = []
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(
                f"message {index} has role {role!r}, expected one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise ValueError(f"message {index} has content {content!r}, expected a string")
        text += f"<|{role}|>\n"
        start = len(text)
        text += content + _END
        if role == "assistant":
            answers.append((start, len(text)))
        text += "\n"
    if add_generation_prompt and messages[-1]["role"] != "assistant":
        text += "<|assistant|>\n"
    return text, answers


def reopen_answer(text: str, answers: Sequence[tuple[int, int]]) -> str:
    """Take the end off a rendered conversation, so that its last answer can go on.

    Args:
        text: Text of `render_messages`.
        answers: Its spans of answers.

    Raises:
        ValueError: If the conversation does not end with an answer.
    """
    end = len(text) - len("\n")
    if not answers or answers[-1][1] != end:
        raise ValueError("the last message is not the assistant's, there is no answer to continue")
    return text[: end - len(_END)]


def encode_text(
    tokenizer: PreTrainedTokenizerFast, text: str, image_token_counts: Sequence[int]
) -> EncodedText:
    """Turn text with image tags into ids.

    The text between two tags is a chunk of its own that begins with a BOS, even if it is empty: the
    published processor does so, and the checkpoint was trained so.

    Args:
        tokenizer: The checkpoint's tokenizer.
        text: Text with one tag `<|image_k|>` for every image, in ascending order from 1.
        image_token_counts: Number of tokens of every image.

    Returns:
        Ids and spans of equal length.

    Raises:
        ValueError: If tags and images do not match, or the text holds a literal image token.

    Source:
        Processor of the published Phi-3-vision checkpoint.
    """
    if IMAGE_TOKEN in text:
        raise ValueError(
            f"the text holds {IMAGE_TOKEN}, which is reserved for image places; "
            f"write {image_tag(1)} where the first image belongs, or remove it"
        )
    tags = list(_TAG.finditer(text))
    _check_tags([int(tag[1]) for tag in tags], len(image_token_counts))
    image_token_id = tokenizer.added_tokens_encoder[IMAGE_TOKEN]
    bounds = [(0, 0), *(tag.span() for tag in tags), (len(text), len(text))]
    encoded = EncodedText()
    for place, (before, after) in enumerate(pairwise(bounds)):
        if place > 0:
            count = image_token_counts[place - 1]
            encoded.input_ids += [image_token_id] * count
            encoded.spans += [before] * count
        _append_chunk(encoded, tokenizer, text, before[1], after[0])
    return encoded


def _append_chunk(
    encoded: EncodedText, tokenizer: PreTrainedTokenizerFast, text: str, start: int, end: int
) -> None:
    """Tokenise text[start:end] with its BOS and append it."""
    # Padding and truncation are named because a tokenizer file may switch them on.
    chunk = tokenizer(
        text[start:end],
        return_offsets_mapping=True,
        padding=False,
        truncation=False,
        verbose=False,
    )
    special = tokenizer.added_tokens_decoder
    for token_id, (left, right) in zip(chunk["input_ids"], chunk["offset_mapping"], strict=True):
        if token_id in special and right > left:
            # Some special tokens swallow the whitespace behind them, which is not theirs.
            right = left + len(special[token_id].content)
        encoded.input_ids.append(token_id)
        encoded.spans.append((start + left, start + right))


def _check_tags(numbers: Sequence[int], num_images: int) -> None:
    """Refuse tags that are not exactly 1, 2, ..., num_images in this order."""
    found = f"found image tags {list(numbers)} for {num_images} image(s)"
    expected = list(range(1, num_images + 1))
    if list(numbers) == expected:
        return
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"an image tag is repeated: {found}; pass the image again with a tag of its own"
        )
    if sorted(numbers) == expected:
        raise ValueError(
            f"image tags are out of order: {found}; number them in order of appearance and pass "
            "the images in that order"
        )
    if len(numbers) != num_images:
        raise ValueError(
            f"images and image tags differ in number: {found}; write one tag per image, from "
            f"{image_tag(1)} on"
        )
    raise ValueError(f"image tags must count 1, 2, 3, ...: {found}; renumber the tags")
