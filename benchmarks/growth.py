"""Decides whether what a long run holds grows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCKS = 10
# 97.5 % of Student's distribution for a line through ten points lie below it.
_QUANTILE = 2.306


@dataclass(frozen=True)
class Growth:
    """How something changed in the second half of a run, in 1,000 steps.

    Attributes:
        slope: Of the line through the medians of ten stretches.
        error: How far the true slope may lie from it, with a confidence of 95 %.
        allowed: The growth up to which it counts as flat.
    """

    slope: float
    error: float
    allowed: float

    @property
    def verdict(self) -> str:
        """``flat``: surely at most what is allowed; ``grows``: surely above 0; or ``unclear``."""
        if self.slope + self.error <= self.allowed:
            return "flat"
        return "grows" if self.slope > self.error else "unclear"


def growth(steps: Sequence[float], values: Sequence[float], allowed: float) -> Growth:
    """Measure how something grows in the second half of a run.

    The half is cut into ten stretches and a straight line is laid through their medians, so that
    workers that start and end, and evaluations, count for nothing.

    Raises:
        ValueError: There are fewer than twenty samples in the half.
    """
    at, series = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    second = at > at[-1] / 2 if len(at) else at > 0
    at, series = at[second], series[second]
    if len(at) < 2 * BLOCKS:
        raise ValueError(
            f"{len(at)} samples in the second half of the run are too few; "
            f"{2 * BLOCKS} are needed: make more steps"
        )
    x = np.array([part.mean() for part in np.array_split(at, BLOCKS)]) / 1000
    y = np.array([np.median(part) for part in np.array_split(series, BLOCKS)])
    x = x - x.mean()
    slope = float(x @ (y - y.mean()) / (x @ x))
    rest = y - y.mean() - slope * x
    error = _QUANTILE * float(np.sqrt(rest @ rest / (BLOCKS - 2) / (x @ x)))
    return Growth(slope, error, allowed)


def summarize(
    samples: Sequence[Mapping[str, float]], allowed: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Make a row for each series: medians of a tenth early, half-way and late, and its growth.

    Args:
        samples: Of a run, in order; each has a ``step``.
        allowed: Names of the series, and the growth in 1,000 steps up to which each is flat.
    """
    tenth = max(len(samples) // 10, 1)
    middle = len(samples) // 2
    parts = (samples[:tenth], samples[middle : middle + tenth], samples[-tenth:])
    steps = [one["step"] for one in samples]
    rows = []
    for name, most in allowed.items():
        start, half, end = (statistics.median(one[name] for one in part) for part in parts)
        found = growth(steps, [one[name] for one in samples], most)
        row = {"name": name, "start": start, "half": half, "end": end}
        rows.append(row | vars(found) | {"verdict": found.verdict})
    return rows
