"""Draws the next token of every row by the row's own settings, so that any rows fit in a batch.

Letters: B rows, T tokens so far, V words of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class RowSampling:
    """How the tokens of one row are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Tokens are drawn from the likeliest ones that make up this share.
        repetition_penalty: Above 1, tokens of prompt and answer become less likely.
        seed: Makes the drawing repeatable, whoever else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None


class RowSampler(LogitsProcessor):
    """Leaves each row one token to choose from, if it draws; greedy generation then takes it.

    Args:
        rows: Settings of the B rows.
        prompt_lengths: Tokens of every prompt without its padding.
        device: Where the logits are.
    """

    def __init__(
        self,
        rows: Sequence[RowSampling],
        prompt_lengths: Sequence[int],
        device: torch.device | str,
    ) -> None:
        self._rows = rows
        self._starts = [max(prompt_lengths) - length for length in prompt_lengths]
        self._generators = [torch.Generator(device) for _ in rows]
        for row, generator in zip(rows, self._generators, strict=True):
            if row.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row.seed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Rework the scores (B, V) of ids (B, T)."""
        if all(row.temperature == 0 and row.repetition_penalty == 1 for row in self._rows):
            return scores
        reworked = [self._rework(place, input_ids, scores) for place in range(len(self._rows))]
        return torch.cat(reworked)

    def _rework(self, place: int, input_ids: Tensor, scores: Tensor) -> Tensor:
        row, logits = self._rows[place], scores[place : place + 1]
        if row.repetition_penalty != 1:
            own: Any = input_ids[place : place + 1, self._starts[place] :]
            logits = RepetitionPenaltyLogitsProcessor(row.repetition_penalty)(own, logits)
        if row.temperature == 0:
            return logits
        logits = logits.float() / row.temperature
        if row.top_p < 1:
            logits = TopPLogitsWarper(row.top_p)(None, logits)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=self._generators[place])
        left = torch.full_like(logits, -torch.inf).scatter(1, drawn, 0.0)
        return left.to(scores.dtype)
