"""Turns of a conversation and their media tags: which file stands behind which tag.

Three tags are understood: ``<image>`` and ``<video>`` (LLaVA) and the published ``<|image_k|>``.
Here they are paired with their files, and later, when the number of frames of every video is known,
rewritten to published tags numbered through the whole conversation.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from phi3v.data.faults import Fault
from phi3v.model.text import IMAGE_TOKEN

MEDIA_TAG = re.compile(r"<image>|<video>|<\|image_[0-9]+\|>")
MediaKind = Literal["image", "video"]


@dataclass(frozen=True)
class Media:
    """One picture or video that a turn refers to, as written in the record.

    Attributes:
        kind: What it is.
        path: Its file or address; for an embedded one, its name in messages.
        content: Bytes of an embedded file.
        folder: Folder that `path` may not leave and is relative to; None takes any path.
    """

    kind: MediaKind
    path: str
    content: bytes | None = field(default=None, repr=False)
    folder: str | Path | None = None

    @property
    def source(self) -> str | bytes:
        """What to open."""
        return self.path if self.content is None else self.content


@dataclass(frozen=True)
class Turn:
    """One checked turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        text: The text as written, with its media tags (see `MEDIA_TAG`).
        media: The file of every tag in `text`, in reading order.
    """

    role: str
    text: str
    media: tuple[Media, ...] = ()


def check_order(roles: Sequence[str]) -> None:
    """Check that user and assistant alternate and that the assistant has the last word.

    Args:
        roles: Checked roles, at least one.

    Raises:
        ValueError: Naming the first turn that is out of order.
    """
    first = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[first:], start=first):
        expected = "user" if (number - first) % 2 == 0 else "assistant"
        if role != expected:
            raise Fault(
                f"turn {number + 1} is the {role}'s, expected the {expected}'s; after an optional "
                "first system turn, user and assistant alternate",
                "role order",
            )
    if roles[-1] != "assistant":
        raise Fault(
            f"the last turn is the {roles[-1]}'s; end with the assistant's answer to learn",
            "role order",
        )


def assign_media(spoken: Sequence[tuple[str, str]], media: Sequence[Media]) -> tuple[Turn, ...]:
    """Pair every tag, in reading order, with the next file of its kind.

    Args:
        spoken: Role and text of every turn.
        media: The files of the record; pictures and videos each in the order of their tags.

    Raises:
        ValueError: If tags and files do not match, a tag stands outside a user turn, published
            tags are not numbered in reading order, or a text holds the reserved image token.
    """
    waiting = {kind: [one for one in media if one.kind == kind] for kind in ("image", "video")}
    listed = {kind: len(files) for kind, files in waiting.items()}
    tags: dict[str, list[str]] = {"image": [], "video": []}
    turns = []
    for number, (role, text) in enumerate(spoken, start=1):
        if IMAGE_TOKEN in text:
            raise Fault(
                f"turn {number} holds {IMAGE_TOKEN}, which is reserved; write <image> where a "
                "picture belongs, or remove it",
                "bad text",
            )
        used = []
        for match in MEDIA_TAG.finditer(text):
            kind = "video" if match.group() == "<video>" else "image"
            if role != "user":
                raise Fault(
                    f"turn {number} is the {role}'s and has the tag {match.group()}; "
                    "media belong in user turns",
                    "tags and media differ",
                )
            tags[kind].append(match.group())
            if len(tags[kind]) <= listed[kind]:
                used.append(waiting[kind][len(tags[kind]) - 1])
        turns.append(Turn(role, text, tuple(used)))
    for kind, found in tags.items():
        if len(found) != listed[kind]:
            raise Fault(
                f"{listed[kind]} {kind}{'s' * (listed[kind] != 1)} but {len(found)} <{kind}> "
                f"tag{'s' * (len(found) != 1)}; write one tag per {kind}",
                "tags and media differ",
            )
    _check_numbers(tags["image"])
    return tuple(turns)


def _check_numbers(tags: list[str]) -> None:
    numbered = [tag for tag in tags if tag != "<image>"]
    if numbered and len(numbered) != len(tags):
        raise Fault(
            f"mixes <image> with {numbered[0]}; use one form of tag throughout the record",
            "tags and media differ",
        )
    expected = [f"<|image_{number}|>" for number in range(1, len(tags) + 1)]
    if numbered and numbered != expected:
        raise Fault(
            f"image tags in the order {', '.join(numbered)}; expected {', '.join(expected)}: "
            "number them from 1 in reading order and list the files in that order",
            "tags and media differ",
        )


def expand_tags(turns: Iterable[Turn], num_frames: Iterable[int]) -> list[dict[str, str]]:
    """Rewrite all tags to published ones, numbered through the conversation from 1.

    A video becomes the tags of its frames, one per line; all other text stays as it is.

    Args:
        turns: Turns of one record.
        num_frames: Pictures behind every tag in reading order: 1 for an image, the sampled frames
            of a video.

    Returns:
        Messages with "role" and "content" for the chat template.
    """
    counts = iter(num_frames)
    next_number = 1

    def numbered_tags(match: re.Match[str]) -> str:
        nonlocal next_number
        first, next_number = next_number, next_number + next(counts)
        return "\n".join(f"<|image_{number}|>" for number in range(first, next_number))

    return [
        {"role": turn.role, "content": MEDIA_TAG.sub(numbered_tags, turn.text)} for turn in turns
    ]
