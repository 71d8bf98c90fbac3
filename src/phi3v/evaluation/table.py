"""Scores as text for a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3v.evaluation.metrics import METRICS, NUM_RESAMPLES, Score
from phi3v.evaluation.results import BASE, MODEL, Result

COLUMNS = 80
_MOST_LABELS = 16
_WIDEST_LABEL = 16


def is_share(metric: str) -> bool:
    """Tell whether a metric is shown in percent."""
    return METRICS[metric].best == 1


def format_score(metric: str, value: float) -> str:
    """Write a score in the unit of its metric: "93.4 %", "27.3", "1.24"."""
    return f"{format_number(metric, value)}{' %' if is_share(metric) else ''}"


def format_number(metric: str, value: float, *, sign: bool = False) -> str:
    """Write a score without its unit: "93.4"; a gain with its sign."""
    places = 2 if METRICS[metric].best == 10 else 1
    scale = 100 if is_share(metric) else 1
    return f"{scale * value:{'+' if sign else ''}.{places}f}"


def format_interval(metric: str, score: Score, *, sign: bool = False) -> str:
    """Write an interval without its unit: "91.2..95.4"."""
    low, high = (format_number(metric, value, sign=sign) for value in (score.low, score.high))
    return f"{low}..{high}"


def table(result: Result) -> str:
    """Write the scores of one model, or of base and model and the gain, a line for each metric."""
    both = BASE in result.scores
    rows = [["", BASE, MODEL, "gain"] if both else ["", "score"]]
    for metric, score in result.scores[MODEL].items():
        cells = [_cell(metric, score)]
        if both:
            gain = result.gains[metric]
            cells = [
                _cell(metric, result.scores[BASE][metric]),
                *cells,
                f"{format_number(metric, gain.score, sign=True)} "
                f"[{format_interval(metric, gain, sign=True)}]",
            ]
        rows.append([metric, *cells])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        shown = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        summary = f"  {METRICS[name].summary}" if name and not both else ""
        lines.append(f"{name:<{widths[0]}}{shown}{summary}")
    lines.append(f"in brackets: the middle 95 % of {NUM_RESAMPLES:,} resamples")
    return "\n".join(lines)


def _cell(metric: str, score: Score) -> str:
    return f"{format_score(metric, score.score)} [{format_interval(metric, score)}]"


def confusion_table(confusion: Mapping[str, Any], columns: int = COLUMNS) -> str:
    """Draw a confusion matrix: a row for each right label, a column for each answered one.

    Returns:
        Lines, or a hint where it does not fit into `columns`.
    """
    rows: Sequence[str] = confusion["rows"]
    counts: Sequence[Sequence[int]] = confusion["counts"]
    labels = [_clip(label, _WIDEST_LABEL) for label in rows]
    name = max(map(len, labels))
    heads = [_clip(head, _WIDEST_LABEL) for head in confusion["columns"]]
    widths = [
        1 + max(len(head), *(len(str(row[place])) for row in counts))
        for place, head in enumerate(heads)
    ]
    if len(rows) > _MOST_LABELS or name + sum(widths) > columns:
        return f"confusion matrix of {len(rows)} labels: in scores.json"
    lines = ["confusion matrix: rows are right labels, columns answers; (other) is no label"]
    for label, cells in [("", heads), *zip(labels, counts, strict=True)]:
        shown = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{label:<{name}}{shown}")
    return "\n".join(lines)


def _clip(text: str, width: int) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if len(plain) <= width else plain[: width - 1] + "~"


def throughput_line(name: str, numbers: Mapping[str, float]) -> str:
    """Say how long the answers are and how fast they came."""
    return (
        f"{name}: {numbers['tokens_per_answer']:.1f} tokens per answer, "
        f"{numbers['cut_off']} of {numbers['samples']} cut off, "
        f"{numbers['samples_per_second']:.2f} samples/s"
    )
