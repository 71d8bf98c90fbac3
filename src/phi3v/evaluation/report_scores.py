"""The report's sections about scores and samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3v.data.turns import MEDIA_TAG
from phi3v.evaluation.markup import escape, picture_uri
from phi3v.evaluation.metrics import METRICS, Score
from phi3v.evaluation.page import AnswerLine, bars, card, cards, panel, section, table
from phi3v.evaluation.results import BASE, MODEL
from phi3v.evaluation.run_files import Evaluation
from phi3v.evaluation.table import format_interval, format_number, format_score

GROUPS = {
    "worst": "Worst answers",
    "changed": "Most changed by the training",
    "drawn": "Drawn at random",
}
MOST_LABELS = 20
NAMES = {BASE: "before", MODEL: "after"}


def score_section(one: Evaluation) -> str:
    """Show the scores of an evaluation, and the confusion matrix if there is a readable one."""
    found = one.found
    scores: Mapping[str, Any] = found["scores"]
    data = str(found.get("data", one.folder.name))
    title = f"Scores on {data.rsplit('/', 1)[-1]}"
    why = found.get("metrics_because", "")
    note = f"{found.get('questions', len(one.samples))} questions. Metrics: {why}. "
    body = panel(_headline(scores) + _score_table(scores, found.get("gains", {}))) + (
        f'<p class="soft small">{escape(note)}In brackets: the middle 95 % of resamples of the '
        "questions.</p>"
    )
    confusion = found.get("confusion", {}).get(MODEL)
    if confusion and len(confusion["rows"]) <= MOST_LABELS:
        body += f"<h3>Right labels and answers</h3>{panel(_confusion(confusion))}"
    return section(title, body)


def _score(values: Mapping[str, float]) -> Score:
    return Score(values["score"], values["low"], values["high"])


def _headline(scores: Mapping[str, Any]) -> str:
    metric = next(iter(scores[MODEL]))
    if metric not in METRICS:
        return ""
    best = METRICS[metric].best
    shown = [
        (
            NAMES[name] if len(scores) > 1 else "score",
            scores[name][metric]["score"] / best,
            format_score(metric, scores[name][metric]["score"]),
        )
        for name in (BASE, MODEL)
        if name in scores
    ]
    return f"<p><strong>{escape(metric)}</strong>: {METRICS[metric].summary}</p>{bars(shown)}"


def _score_table(scores: Mapping[str, Any], gains: Mapping[str, Any]) -> str:
    names = [name for name in (BASE, MODEL) if name in scores]
    rows = []
    for metric in scores[MODEL]:
        if metric not in METRICS:
            continue
        cells = []
        for name in names:
            score = _score(scores[name][metric])
            shown = format_score(metric, score.score)
            cells.append(f"{shown}\n[{format_interval(metric, score)}]")
        if metric in gains:
            gain = _score(gains[metric])
            shown = format_number(metric, gain.score, sign=True)
            cells.append(f"{shown}\n[{format_interval(metric, gain, sign=True)}]")
        elif gains:
            cells.append("")
        rows.append([metric, *cells])
    heads = [NAMES[name] for name in names] if len(names) > 1 else ["score"]
    return table(["metric", *heads, *(["gain"] if gains else [])], rows, name="Scores")


def _confusion(confusion: Mapping[str, Any]) -> str:
    rows = [
        [str(label), *(str(count) if count else "·" for count in counts)]
        for label, counts in zip(confusion["rows"], confusion["counts"], strict=True)
    ]
    head = ["right ↓ answered →", *map(str, confusion["columns"])]
    return table(head, rows, name="Confusion matrix")


def gallery_section(one: Evaluation) -> str:
    """Show the chosen samples, group by group: the worst first, then the most changed."""
    if not one.found["scores"][MODEL]:
        return ""
    metric = next(iter(one.found["scores"][MODEL]))
    body = ""
    for group, title in GROUPS.items():
        chosen = [sample for sample in one.samples if sample.get("shown") == group]
        if chosen:
            items = [_card(one, sample, metric) for sample in chosen]
            body += f"<h3>{escape(title)}</h3>{cards(items)}"
    if not body:
        return ""
    lead = f'<p class="soft small">Ordered by {escape(metric)}.</p>'
    return section("Questions and answers", lead + body)


def _card(one: Evaluation, sample: Mapping[str, Any], metric: str) -> str:
    references = listed(sample["reference"])
    pictures = []
    names = sample.get("pictures", [])
    for number, name in enumerate(names, start=1):
        path = one.folder / str(name)
        # Only our own files: a name must not lead out of the folder.
        if path.is_file() and path.resolve().is_relative_to(one.folder.resolve()):
            alt = f"Picture {number} of {len(names)} of sample {sample['id']}; expected answer: "
            pictures.append((picture_uri(path), alt + " or ".join(references)))
    answers = [
        _answer(NAMES[name] if "base_answer" in sample else "answer", sample, prefix, metric)
        for name, prefix in ((BASE, "base_"), (MODEL, ""))
        if f"{prefix}answer" in sample
    ]
    question = MEDIA_TAG.sub("", str(sample["prompt"])).strip() or "(no text)"
    return card(pictures, question, " / ".join(dict.fromkeys(references)), answers)


def _answer(name: str, sample: Mapping[str, Any], prefix: str, metric: str) -> AnswerLine:
    text = str(sample[f"{prefix}answer"])
    score = sample.get(f"{prefix}scores", {}).get(metric)
    if score is None or metric not in METRICS:
        return AnswerLine(name, text)
    best = METRICS[metric].best
    if score >= best:
        return AnswerLine(name, text, True, "✓ right")
    if score <= 0:
        return AnswerLine(name, text, False, "✗ wrong")
    return AnswerLine(name, text, score >= best / 2, format_score(metric, score))


def listed(reference: Any) -> Sequence[str]:
    """Give the references of a sample as a list of texts."""
    return [str(one) for one in (reference if isinstance(reference, list) else [reference])]
