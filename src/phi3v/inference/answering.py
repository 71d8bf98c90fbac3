"""Answers several requests in one batch, each by its own settings and stop texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from phi3v.inference.answers import text_pieces
from phi3v.inference.prefilling import generate_rows
from phi3v.inference.prefixes import PrefixCache
from phi3v.inference.prompts import PreparedPrompt
from phi3v.inference.sampling import RowSampler, RowSampling
from phi3v.model.processing import Phi3VProcessor


@dataclass(frozen=True)
class AnswerRequest:
    """What is asked of the model.

    Attributes:
        prompt: The prompt.
        max_new_tokens: Most tokens of the answer.
        sampling: How its tokens are chosen.
        stop: The answer ends before the first of these texts.
        adapted: Answer with the adapter; False switches it off.
    """

    prompt: PreparedPrompt
    max_new_tokens: int = 500
    sampling: RowSampling = field(default_factory=RowSampling)
    stop: tuple[str, ...] = ()
    adapted: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt.input_ids) + self.max_new_tokens


@dataclass(frozen=True)
class AnswerPiece:
    """A piece of an answer; the pieces join to its text.

    Attributes:
        text: The text, which may be empty in the last piece.
        num_tokens: Tokens generated so far.
        finish_reason: "stop" or "length" in the last piece.
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None


class StopTexts:
    """Cuts streamed text before the first of several texts, which may come in parts."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Take more text and return what surely belongs to the answer."""
        self._held += text
        places = [self._held.find(one) for one in self._stop]
        if found := [place for place in places if place >= 0]:
            self.found = True
            self._held, kept = "", self._held[: min(found)]
            return kept
        keep = max((_overlap(self._held, one) for one in self._stop), default=0)
        split = len(self._held) - keep
        self._held, kept = self._held[split:], self._held[:split]
        return kept

    def rest(self) -> str:
        """Return what was held back, at the end of the answer."""
        return "" if self.found else self._held


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of a text that begin another one."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Row:
    """One request on its way.

    Args:
        request: What is asked.
        processor: Turns ids into text.
        deliver: Called with every piece, and with the error that ends the answer; from the thread
            of the model.
    """

    def __init__(
        self,
        request: AnswerRequest,
        processor: Phi3VProcessor,
        deliver: Callable[[AnswerPiece | Exception], None],
    ) -> None:
        self.request = request
        self._pieces = text_pieces(processor)
        self._stop = StopTexts(request.stop)
        self._deliver = deliver
        self.num_tokens = 0
        self.done = False

    def cancel(self) -> None:
        """End the answer; nobody reads it any more."""
        self.done = True

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        if not self.done:
            self.done = True
            self._deliver(error)

    def accept(self, token_id: int, ends: bool) -> None:
        """Take the next id.

        Args:
            token_id: The id.
            ends: Whether the model ends its answer with it.
        """
        self.num_tokens += 1
        text = self._stop.add(self._pieces.add(token_id))
        full = self.num_tokens == self.request.max_new_tokens
        if ends or full:
            text += self._stop.add(self._pieces.rest())
        if ends or full or self._stop.found:
            self.done = True
            reason = "stop" if ends or self._stop.found else "length"
            self._deliver(AnswerPiece(text + self._stop.rest(), self.num_tokens, reason))
        elif text:
            self._deliver(AnswerPiece(text, self.num_tokens))


class _HandOn(StoppingCriteria):
    """Hands new ids to their rows, and tells generation which rows are done."""

    def __init__(self, rows: Sequence[Row], stop_ids: Sequence[int]) -> None:
        self._rows = rows
        self._stop_ids = set(stop_ids)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        for row, token_id in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.done:
                row.accept(token_id, token_id in self._stop_ids)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)


def answer_rows(
    model: Any,
    processor: Phi3VProcessor,
    rows: Sequence[Row],
    prefixes: PrefixCache | None = None,
    *,
    static_cache: bool = False,
) -> None:
    """Answer rows in one batch; a row that is cancelled stops with the token in work.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it, with the adapter already switched.
        processor: Its processor.
        rows: At least one, all with the adapter or all without.
        prefixes: What is kept of earlier conversations; gets these too. None keeps nothing.
        static_cache: As in `GenerationSettings`.

    Raises:
        Exception: Whatever the generation raised; rows that are not done have no answer.
    """
    prompts = [row.request.prompt for row in rows]
    lengths = [len(prompt.input_ids) for prompt in prompts]
    sampler = RowSampler([row.request.sampling for row in rows], lengths, model.device)
    generate_rows(
        model,
        prompts,
        prefixes or PrefixCache(max_tokens=0),
        pad_id=processor.tokenizer.bos_token_id,
        adapted=rows[0].request.adapted,
        answer_lengths=lambda: [row.num_tokens for row in rows],
        max_new_tokens=max(row.request.max_new_tokens for row in rows),
        do_sample=False,
        cache_implementation="static" if static_cache else None,
        # An image place without its picture cannot be read again in the next step.
        suppress_tokens=[processor.image_token_id],
        logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList([_HandOn(rows, model.config.stop_token_ids)]),
    )
