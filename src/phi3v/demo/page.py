"""The demo's report, and its table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi3v.demo.digits import is_right
from phi3v.evaluation.curve import curve_svg
from phi3v.evaluation.markup import escape, picture_uri
from phi3v.evaluation.page import AnswerLine, bars, card, cards, document, panel, section, table
from phi3v.evaluation.page import facts as list_of_facts


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
    scores = _score_table(scores_before, scores_after)
    curve = curve_svg(loss_curve, name="loss per answer token", smooth=True)
    legend = '<p class="soft small">Thin line: as logged. Thick line: running mean.</p>'
    body = [
        _headline(scores_before, scores_after, seconds),
        section(
            "Score on held-out pictures, and time",
            f'<div class="pair">{panel(scores)}{panel(_seconds_table(seconds))}</div>',
        ),
        section(
            "What it answered, before and after",
            '<p class="soft small">Held-out pictures, never trained on.\n'
            "An answer is right when all of it matches.</p>"
            + cards([_sample(row) for row in rows]),
        ),
        '<div class="pair">',
        section("Loss during training", panel(curve + legend)),
        section("The run", panel(list_of_facts(facts))),
        "</div>",
    ]
    path.write_text(document(title, "\n".join(body)), encoding="utf-8")


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
    shares = [
        (when, score.percent / 100, f"{score.percent:.1f} %")
        for when, score in (("before", before[name]), ("after", after[name]))
    ]
    return panel(
        f'<p>"{escape(name)}", right answers of {after[name].total} held-out pictures:</p>'
        f'{bars(shares)}<p class="soft small">Everything was computed in this one run of '
        f"{sum(seconds.values()):.0f} seconds.</p>"
    )


def _score_table(before: Mapping[str, Score], after: Mapping[str, Score]) -> str:
    rows = [
        [name, *(f"{s.percent:.1f} %\n{s.correct} of {s.total}" for s in (score, after[name]))]
        for name, score in before.items()
    ]
    return table(["question", "before", "after"], rows)


def _seconds_table(seconds: Mapping[str, float]) -> str:
    rows = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    return table(["stage", "seconds"], rows, ["all", f"{sum(seconds.values()):.1f}"])


def _sample(row: Sample) -> str:
    alt = f"Held-out picture; the right answer is {row.expected}"
    answers = []
    for when, answer in (("before", row.before), ("after", row.after)):
        right = is_right(answer, row.expected)
        answers.append(AnswerLine(when, answer, right, "✓ right" if right else "✗ wrong"))
    return card([(picture_uri(row.image_path), alt)], row.question, row.expected, answers)
