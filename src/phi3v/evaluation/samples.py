"""What every metric works on: answers beside their references. Letter: S samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One answer to be scored.

    Attributes:
        id: Names the sample in messages.
        references: Right answers, at least one.
        answer: The answer of a model.
    """

    id: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Scored:
    """What a metric found.

    Attributes:
        per_sample: float (S,).
        total: Gives the score of the samples with these indices, int (N,), repeats allowed; by it
            the score of all and its confidence interval are computed.
        details: More that is worth keeping, ready for JSON.
    """

    per_sample: np.ndarray
    total: Callable[[np.ndarray], float]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Score of all samples."""
        return self.total(np.arange(len(self.per_sample)))


def mean_of(values: Sequence[float], details: dict[str, Any] | None = None) -> Scored:
    """Make the result of a metric whose score is the mean over samples."""
    scores = np.asarray(values, np.float64)
    return Scored(scores, lambda indices: float(scores[indices].mean()), details or {})


def best_of(compare: Callable[[str, str], float]) -> Callable[[Sequence[Sample]], Scored]:
    """Make a metric of a comparison of (answer, reference): the best reference counts."""

    def metric(samples: Sequence[Sample]) -> Scored:
        return mean_of(
            [max(compare(one.answer, reference) for reference in one.references) for one in samples]
        )

    return metric
