"""All metrics by name, and scores with confidence intervals. Letters: S samples, R resamples."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from phi3v.evaluation.boxes import box_accuracy, box_iou
from phi3v.evaluation.captions import bleu, chrf, cider, rouge_l
from phi3v.evaluation.classes import accuracy, macro_f1
from phi3v.evaluation.matching import anls, exact_match, relaxed_accuracy, token_f1
from phi3v.evaluation.samples import Sample, Scored
from phi3v.evaluation.vqa import vqa_accuracy

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


class Metric(NamedTuple):
    """A metric and what tables say about it.

    Attributes:
        compute: Scores all samples.
        summary: What it measures.
        best: Its best value: 1 is shown in percent, others as they are.
    """

    compute: Callable[[Sequence[Sample]], Scored]
    summary: str
    best: float = 1.0


METRICS = {
    "exact_match": Metric(exact_match, "whole answers that are a reference"),
    "vqa_accuracy": Metric(vqa_accuracy, "agreement with ten people"),
    "anls": Metric(anls, "likeness by edit distance"),
    "relaxed_accuracy": Metric(relaxed_accuracy, "numbers within 5 %, texts the same"),
    "token_f1": Metric(token_f1, "words in common"),
    "rouge_l": Metric(rouge_l, "longest common word sequence"),
    "bleu": Metric(bleu, "n-grams of words, 0 to 100", 100),
    "chrf": Metric(chrf, "n-grams of letters, 0 to 100", 100),
    "cider": Metric(cider, "rare n-grams of words, 0 to 10", 10),
    "accuracy": Metric(accuracy, "right labels"),
    "macro_f1": Metric(macro_f1, "mean F1 over labels"),
    "box_iou": Metric(box_iou, "overlap of boxes"),
    "box_accuracy": Metric(box_accuracy, "boxes that overlap by half"),
}


@dataclass(frozen=True)
class Score:
    """A number with its confidence interval.

    Attributes:
        score: Of all samples.
        low: Lower end of the interval.
        high: Upper end.
    """

    score: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Round for a file: beyond the sixth place no score means anything."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are no metric.

    Raises:
        ValueError: With the closest name, or all.
    """
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            advice = f"did you mean {close[0]}?" if close else "they are " + ", ".join(METRICS)
            raise ValueError(f"unknown metric {name!r}; {advice}")


def compute(names: Sequence[str], samples: Sequence[Sample]) -> dict[str, Scored]:
    """Score samples by several metrics.

    Raises:
        ValueError: There are no samples, a name is no metric, or the references do not suit one.
    """
    check_names(names)
    if not samples:
        raise ValueError("there are no samples to score; check the data file and --limit")
    return {name: METRICS[name].compute(samples) for name in names}


def with_intervals(
    scored: dict[str, Scored], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Score]:
    """Estimate how far the scores would move with other samples of the same kind.

    Percentile bootstrap: S samples are drawn with replacement, R times; the interval holds the
    middle 95 % of the scores. All metrics see the same draws.

    Args:
        scored: Of the same S samples.
        seed: Of the draws.
        num_resamples: R.
    """
    draws = _draws(scored, seed, num_resamples)
    totals = {name: [] for name in scored}  # type: dict[str, list[float]]
    for indices in draws:
        for name, one in scored.items():
            totals[name].append(one.total(indices))
    return {name: _interval(one.score, totals[name]) for name, one in scored.items()}


def differences(
    before: dict[str, Scored],
    after: dict[str, Scored],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Score]:
    """Estimate the gain of one model over another on the same samples, draw by draw.

    Paired, so that samples which are hard for both do not widen the interval.

    Args:
        before: Scores by metric of the first model.
        after: Of the second model, on the same S samples in the same order.
        seed: Of the draws.
        num_resamples: R.
    """
    gains: dict[str, list[float]] = {name: [] for name in after}
    for indices in _draws(after, seed, num_resamples):
        for name in after:
            gains[name].append(after[name].total(indices) - before[name].total(indices))
    return {
        name: _interval(after[name].score - before[name].score, values)
        for name, values in gains.items()
    }


def _draws(scored: dict[str, Scored], seed: int, num_resamples: int) -> Any:
    count = len(next(iter(scored.values())).per_sample)
    generator = np.random.default_rng(seed)
    return (generator.integers(0, count, count) for _ in range(num_resamples))


def _interval(score: float, totals: Sequence[float]) -> Score:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(totals, [tail, 1 - tail])
    return Score(score, float(low), float(high))
