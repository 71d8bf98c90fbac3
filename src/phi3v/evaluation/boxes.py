"""Metrics of boxes that an answer names by its corners."""

import re
from collections.abc import Sequence

from phi3v.evaluation.samples import Sample, Scored, mean_of

LEAST_OVERLAP = 0.5
Box = tuple[float, float, float, float]
_NUMBER = r"\s*[<(\[]*\s*(-?\d+(?:\.\d+)?)\s*[>)\]]*\s*"
_IN_BRACKETS = re.compile(rf"[\[(<]{_NUMBER},?{_NUMBER},?{_NUMBER},?{_NUMBER}[\])>]")
_BARE = re.compile(rf"^{_NUMBER}[,\s]{_NUMBER}[,\s]{_NUMBER}[,\s]{_NUMBER}$")


def read_box(text: str) -> Box | None:
    """Find the first box in a text: "[x1, y1, x2, y2]", "(x1,y1),(x2,y2)" or four bare numbers.

    Returns:
        Left, top, right and bottom in the unit of the text; None where there is no box.
    """
    found = _IN_BRACKETS.search(text) or _BARE.match(text.strip())
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return left, top, right, bottom


def overlap(first: Box, second: Box) -> float:
    """Compute intersection over union; a box without an area overlaps with nothing."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for b in (first, second)]
    if min(width, height) <= 0 or 0 in areas:
        return 0.0
    return width * height / (sum(areas) - width * height)


def _overlaps(samples: Sequence[Sample]) -> list[float]:
    scores = []
    for sample in samples:
        boxes = [read_box(reference) for reference in sample.references]
        if None in boxes:
            raise ValueError(
                f"sample {sample.id!r}: the reference {sample.references[boxes.index(None)]!r} is "
                "no box such as [10, 20, 110, 220]; choose other metrics"
            )
        answer = read_box(sample.answer)
        found = [overlap(answer, box) for box in boxes if box] if answer else [0.0]
        scores.append(max(found))
    return scores


def box_iou(samples: Sequence[Sample]) -> Scored:
    """Score by intersection over union with the best reference; an answer without a box has 0."""
    return mean_of(_overlaps(samples))


def box_accuracy(samples: Sequence[Sample]) -> Scored:
    """Score by the share of boxes that overlap with a reference by one half or more."""
    return mean_of([float(value >= LEAST_OVERLAP) for value in _overlaps(samples)])
