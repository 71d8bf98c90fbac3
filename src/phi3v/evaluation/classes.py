"""Metrics of classification: the references are the labels. Letters: S samples, L labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from phi3v.evaluation.samples import Sample, Scored, mean_of

MOST_LABELS_SHOWN = 50
OTHER = "(other)"


def label_of(text: str) -> str:
    """Bring a label into the form in which labels are compared: case and a last period go."""
    return text.strip().removesuffix(".").rstrip().casefold()


def _indices(samples: Sequence[Sample]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Give the L labels in order, and for each sample its right and its answered one.

    Returns:
        Labels; int (S,) from 0 to L - 1; int (S,) from 0 to L, where L is an answer that is no
        label.

    Raises:
        ValueError: A sample has references that differ.
    """
    right = []
    for sample in samples:
        labels = {label_of(reference) for reference in sample.references}
        if len(labels) > 1:
            raise ValueError(
                f"sample {sample.id!r} has {len(labels)} different references; classification "
                "needs one label each; choose other metrics"
            )
        right.append(labels.pop())
    names = sorted(set(right))
    places = {name: place for place, name in enumerate(names)}
    answered = [places.get(label_of(sample.answer), len(names)) for sample in samples]
    return names, np.array([places[name] for name in right]), np.array(answered)


def accuracy(samples: Sequence[Sample]) -> Scored:
    """Score by the share of right labels; the details hold the confusion matrix."""
    names, right, answered = _indices(samples)
    return mean_of(right == answered, _confusion(names, right, answered))


def macro_f1(samples: Sequence[Sample]) -> Scored:
    """Score by the mean F1 over the labels that occur among the references.

    An answer that is no label counts as a miss of its right label, and is no label of its own.
    """
    names, right, answered = _indices(samples)
    num = len(names)

    def total(indices: np.ndarray) -> float:
        chosen, found = right[indices], answered[indices]
        hits = np.bincount(chosen[chosen == found], minlength=num)
        expected = np.bincount(chosen, minlength=num)
        given = np.bincount(found, minlength=num + 1)[:num]
        present = expected > 0
        return float((2 * hits[present] / (expected + given)[present]).mean())

    return Scored((right == answered).astype(np.float64), total, _confusion(names, right, answered))


def _confusion(names: list[str], right: np.ndarray, answered: np.ndarray) -> dict[str, Any]:
    """Count (right, answered) pairs; nothing where there are too many labels to look at."""
    if len(names) > MOST_LABELS_SHOWN:
        return {}
    columns = len(names) + 1
    counts = np.bincount(right * columns + answered, minlength=len(names) * columns)
    return {
        "rows": names,
        "columns": [*names, OTHER],
        "counts": counts.reshape(len(names), columns).tolist(),
    }
