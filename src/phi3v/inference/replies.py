"""Answers in the form of the OpenAI API."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer have in common.

    Attributes:
        model: Name of the model.
        num_prompt_tokens: Tokens of the prompt.
        id: Name of the answer.
        created: When it was begun, in seconds since 1970.
    """

    model: str
    num_prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Write one event of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._dress("chat.completion.chunk", [choice])

    def whole(self, text: str, finish_reason: str | None, num_tokens: int) -> dict[str, Any]:
        """Write a complete answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._dress("chat.completion", [choice]) | self.usage(num_tokens)

    def usage(self, num_tokens: int) -> dict[str, Any]:
        """Write the counts of tokens."""
        counts = {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": num_tokens}
        return {"usage": counts | {"total_tokens": self.num_prompt_tokens + num_tokens}}

    def usage_chunk(self, num_tokens: int) -> dict[str, Any]:
        """Write the last event of a streamed answer, with the counts of tokens."""
        return self._dress("chat.completion.chunk", []) | self.usage(num_tokens)

    def _dress(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **{"id": self.id, "object": kind, "created": self.created, "model": self.model},
            "choices": choices,
        }
