"""The demo's report: one HTML file that needs nothing else, and a table for the terminal.

The page has no script and no reference to anything outside itself, so it can be mailed or opened
from a disk. Everything that comes from a run or a model is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from phi3v.demo.curve import loss_svg
from phi3v.demo.digits import is_right
from phi3v.demo.markup import escape, picture_uri

LONGEST_ANSWER = 60  # characters shown; an untrained model may ramble on


@dataclass(frozen=True)
class Sample:
    """One picture of the gallery with what was asked and answered.

    Attributes:
        image_path: Picture file; embedded into the page.
        question: The question, without its image tag.
        expected: The right answer.
        before: The base model's answer.
        after: The fine-tuned model's answer.
    """

    image_path: Path
    question: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True)
class Score:
    """How many answers were right."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """Share of right answers in percent; 0 of 0 is 0."""
        return 100 * self.correct / self.total if self.total else 0.0


def write_page(
    path: Path,
    *,
    title: str,
    rows: Sequence[Sample],
    scores_before: Mapping[str, Score],
    scores_after: Mapping[str, Score],
    seconds: Mapping[str, float],
    loss_curve: Sequence[tuple[int, float]],
    facts: Mapping[str, str],
) -> None:
    """Write the report of one demo run.

    Args:
        path: The HTML file to write.
        title: Title and heading.
        rows: Samples of the gallery, in order. The caller chooses them, and says how in `facts`.
        scores_before: Score by question, of the base model.
        scores_after: Score by the same questions, of the fine-tuned model. The
            first one is the headline.
        seconds: Duration by stage, in order.
        loss_curve: (step, loss) as logged.
        facts: What a reader needs to judge or repeat the run: parts trained, seeds,
            versions, command.

    Raises:
        ValueError: When the questions before and after are not the same.
    """
    _check_questions(scores_before, scores_after)
    css = resources.files("phi3v.demo").joinpath("data", "page.css").read_text(encoding="utf-8")
    samples = "".join(_sample(row) for row in rows)
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{_headline(scores_before, scores_after, seconds)}
<h2>Score on held-out pictures, and time</h2>
<div class="pair">
<div class="panel">{_score_table(scores_before, scores_after)}</div>
<div class="panel">{_seconds_table(seconds)}</div>
</div>
<h2>What it answered, before and after</h2>
<p class="soft small">Held-out pictures, never trained on.
An answer is right when all of it matches.</p>
<ul class="samples">{samples}</ul>
<div class="pair">
<section><h2>Loss during training</h2>
<div class="panel">{loss_svg(loss_curve)}
<p class="soft small">Thin line: as logged. Thick line: running mean.</p></div></section>
<section><h2>The run</h2>
<div class="panel"><dl class="facts">{_facts(facts)}</dl></div></section>
</div>
</main>
</body>
</html>
"""
    path.write_text(document, encoding="utf-8")


def terminal_table(
    scores_before: Mapping[str, Score],
    scores_after: Mapping[str, Score],
    seconds: Mapping[str, float],
) -> str:
    """Format scores and durations as plain text, at most 80 columns for short names.

    Args:
        scores_before: Score by question, of the base model.
        scores_after: Score by the same questions, of the fine-tuned model.
        seconds: Duration by stage, in order.

    Returns:
        Lines without a final newline.

    Raises:
        ValueError: When the questions before and after are not the same.
    """
    _check_questions(scores_before, scores_after)
    width = max(len(name) for name in [*scores_before, *seconds, "held-out answers right"])
    lines = [f"{'held-out answers right':<{width}}  {'before':>18}  {'after':>18}"]
    for name, before in scores_before.items():
        cells = (
            f"{score.correct} of {score.total} {score.percent:5.1f} %"
            for score in (before, scores_after[name])
        )
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>18}" for cell in cells))
    lines += ["", f"{'stage':<{width}}  {'seconds':>18}"]
    lines += [
        f"{name:<{width}}  {value:>18.1f}"
        for name, value in [*seconds.items(), ("all", sum(seconds.values()))]
    ]
    return "\n".join(lines)


def _check_questions(before: Mapping[str, Score], after: Mapping[str, Score]) -> None:
    if not before or list(before) != list(after):
        raise ValueError(
            f"scores_before has the questions {list(before)}, scores_after {list(after)}; "
            "give the same questions in the same order, at least one"
        )


def _headline(
    before: Mapping[str, Score], after: Mapping[str, Score], seconds: Mapping[str, float]
) -> str:
    name = next(iter(before))
    bars = "".join(
        f'<div><dt>{when}</dt><dd><span class="bar {when}" style="width:{score.percent:.1f}%">'
        f"</span></dd><dd>{score.percent:.1f} %</dd></div>"
        for when, score in (("before", before[name]), ("after", after[name]))
    )
    return (
        f'<div class="panel"><p>"{escape(name)}", right answers of {after[name].total} held-out '
        f'pictures:</p><dl class="bars">{bars}</dl>'
        f'<p class="soft small">Everything was computed in this one run of '
        f"{sum(seconds.values()):.0f} seconds.</p></div>"
    )


def _score_table(before: Mapping[str, Score], after: Mapping[str, Score]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_cell(before[name])}{_cell(after[name])}</tr>'
        for name in before
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("question", "before", "after"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(score: Score) -> str:
    counts = f"{score.correct} of {score.total}"
    return (
        f'<td><span class="percent">{score.percent:.1f} %</span>'
        f'<span class="soft small">{counts}</span></td>'
    )


def _seconds_table(seconds: Mapping[str, float]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{value:.1f}</td></tr>'
        for name, value in seconds.items()
    )
    return (
        '<table><thead><tr><th scope="col">stage</th><th scope="col">seconds</th></tr></thead>'
        f'<tbody>{body}</tbody><tfoot><tr><th scope="row">all</th>'
        f"<td>{sum(seconds.values()):.1f}</td></tr></tfoot></table>"
    )


def _sample(row: Sample) -> str:
    alt = f"Held-out picture; the right answer is {row.expected}"
    answers = _answer("before", row.before, row.expected) + _answer(
        "after", row.after, row.expected
    )
    return (
        f'<li class="panel sample"><img src="{picture_uri(row.image_path)}" alt="{escape(alt)}">'
        f"<div><h3>{escape(row.question)}</h3><dl><div><dt>expected</dt>"
        f'<dd><span class="answer">{escape(row.expected)}</span></dd></div>'
        f"{answers}</dl></div></li>"
    )


def _answer(when: str, answer: str, expected: str) -> str:
    kind, mark = ("right", "✓ right") if is_right(answer, expected) else ("wrong", "✗ wrong")
    text = answer if len(answer) <= LONGEST_ANSWER else answer[:LONGEST_ANSWER] + "…"
    shown = escape(text) if text.strip() else '<span class="soft">(nothing)</span>'
    return (
        f'<div><dt>{when}</dt><dd><span class="mark {kind}">{mark}</span>'
        f'<bdi class="answer">{shown}</bdi></dd></div>'
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
