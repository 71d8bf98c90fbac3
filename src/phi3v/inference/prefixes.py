"""Keys and values of conversations, kept from one answer to the next question.

What is kept of a conversation serves any prompt that begins with the same tokens and pictures, as
far as they agree: a turn more, an edited one, the same question again. It never changes an answer:
base and adapter are kept apart, pictures are known by their crops, and keys that were rotated with
the short factors serve no prompt that takes the long ones.

Letters: T tokens, W width of a head, M image tokens of a picture, H hidden size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from phi3v.model.configuration import Phi3VConfig

MAX_KEPT_TOKENS = 16384


class Regime(NamedTuple):
    """What decides about keys and values beside the tokens.

    Attributes:
        adapted: Whether the adapter is on.
        is_long: Whether they are rotated with the long factors.
    """

    adapted: bool
    is_long: bool


def regime(config: Phi3VConfig, num_tokens: int, *, adapted: bool) -> Regime:
    """Tell the regime of so many tokens, with the adapter on or off."""
    return Regime(adapted, num_tokens > config.original_max_position_embeddings)


@dataclass(frozen=True, eq=False)
class Prefix:
    """What is kept of one conversation.

    Attributes:
        tokens: (T, 2) int64, see `PreparedPrompt.tokens`.
        keys_values: For each layer keys and values, each (1, key heads, T, W).
        image_embeds: (M, H) image tokens of its pictures by their digests.
        regime: What they were made with.
    """

    tokens: np.ndarray
    keys_values: list[tuple[Tensor, ...]]
    image_embeds: dict[bytes, Tensor]
    regime: Regime


class PrefixCache:
    """The conversations that were used last.

    Args:
        max_tokens: Most tokens of all of them; 0 keeps nothing.
    """

    def __init__(self, max_tokens: int = MAX_KEPT_TOKENS) -> None:
        self.max_tokens = max_tokens
        self._kept: list[Prefix] = []  # the least recently used first

    @property
    def num_tokens(self) -> int:
        """Tokens that are kept."""
        return sum(len(one.tokens) for one in self._kept)

    def longest(self, tokens: np.ndarray, regime: Regime) -> tuple[int, Prefix | None]:
        """Find the conversation that agrees longest with the beginning of a prompt.

        Args:
            tokens: (T, 2) tokens of the prompt.
            regime: What the prompt takes.

        Returns:
            How many tokens agree, and the conversation, or 0 and None.
        """
        found = [
            (common_length(one.tokens, tokens), place)
            for place, one in enumerate(self._kept)
            if one.regime == regime
        ]
        length, place = max(found, default=(0, 0))
        if length == 0:
            return 0, None
        one = self._kept.pop(place)
        self._kept.append(one)
        return length, one

    def image_embeds(self, digest: bytes, *, adapted: bool) -> Tensor | None:
        """Find the image tokens (M, H) of a picture, or None."""
        for one in self._kept:
            if one.regime.adapted == adapted and digest in one.image_embeds:
                return one.image_embeds[digest]
        return None

    def keep(self, added: Prefix) -> None:
        """Keep a conversation, instead of those that it continues; the oldest leave for it."""
        if len(added.tokens) > self.max_tokens:
            return
        self._kept = [one for one in self._kept if not _continues(added, one)] + [added]
        while self.num_tokens > self.max_tokens:
            self._kept.pop(0)

    def clear(self) -> bool:
        """Forget everything, and tell whether there was anything."""
        was_used = bool(self._kept)
        self._kept.clear()
        return was_used


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Count the tokens with which two rows (T, 2) begin alike."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length


def _continues(longer: Prefix, shorter: Prefix) -> bool:
    length = len(shorter.tokens)
    return longer.regime == shorter.regime and np.array_equal(
        longer.tokens[:length], shorter.tokens
    )
