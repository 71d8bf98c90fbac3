"""Finding records that ask about the same pictures, so that the pictures are encoded once.

Records are alike when they hold the same media in their first question, and the same text before
and between them. What follows may differ.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np

from phi3v.data.encoding import Layout
from phi3v.data.records import Record


class _Dataset(Protocol):
    on_bad_record: Literal["error", "skip"]

    def record(self, position: int) -> Record: ...

    def layout(self, position: int) -> Layout: ...


def share_key(record: Record) -> tuple[object, ...] | None:
    """Return what records must have in common to share their pictures; None if there is nothing.

    The key is the text up to the last tag of the first question, with all media of the record.
    """
    first = next((i for i, turn in enumerate(record.turns) if turn.role == "user"), None)
    if first is None or not record.turns[first].media:
        return None
    if any(turn.media for turn in record.turns[first + 1 :]):
        return None
    system = tuple(turn.text for turn in record.turns[:first])
    question = record.turns[first]
    last_tag = max(question.text.rfind(tag) for tag in ("<image>", "<video>", "|>"))
    media = (
        (one.kind, one.path, one.folder, one.content and blake2b(one.content).digest())
        for one in question.media
    )
    return (*system, question.text[: last_tag + 1], *media)


def share_groups(
    dataset: _Dataset,
    lengths: np.ndarray,
    image_token_id: int,
    *,
    max_branches: int,
    rotary_switch: int,
) -> tuple[list[list[int]], np.ndarray]:
    """Group the examples of a data set by their pictures.

    Args:
        dataset: Gives records and layouts.
        lengths: (U,) tokens of every example.
        image_token_id: Id of the places of pictures.
        max_branches: Most examples of a group.
        rotary_switch: Examples on different sides of this length are never grouped: they need other
            rotary factors.

    Returns:
        Positions of each group, and int64 tokens of each group with its common beginning counted
        once.
    """
    by_key: dict[object, list[int]] = defaultdict(list)
    groups: list[list[int]] = []
    for position in range(len(lengths)):
        key = share_key(dataset.record(position))
        if key is None:
            groups.append([position])
        else:
            by_key[key, bool(lengths[position] > rotary_switch)].append(position)
    for positions in by_key.values():
        groups += _chunks(positions, max_branches)
    groups.sort()
    tokens = [_tokens(dataset, group, lengths, image_token_id) for group in groups]
    return groups, np.array(tokens, dtype=np.int64)


def _chunks(positions: Sequence[int], size: int) -> Iterable[list[int]]:
    for start in range(0, len(positions), size):
        yield list(positions[start : start + size])


def _tokens(
    dataset: _Dataset, group: Sequence[int], lengths: np.ndarray, image_token_id: int
) -> int:
    total = int(lengths[list(group)].sum())
    if len(group) == 1:
        return total
    try:
        ids = np.array(dataset.layout(group[0]).input_ids)
    except (ValueError, OSError):
        # A file has gone since the lengths were counted.
        if dataset.on_bad_record == "error":
            raise
        return total
    places = np.flatnonzero(ids == image_token_id)
    prefix = int(places[-1]) + 1 if len(places) else 0
    return total - (len(group) - 1) * prefix
