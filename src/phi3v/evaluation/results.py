"""Scores of an evaluation and its samples, as they are written and read again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi3v.data.questions import Question
from phi3v.evaluation.metrics import Score, compute, differences, with_intervals
from phi3v.evaluation.samples import Sample, Scored

MODEL, BASE = "model", "base"


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        scores: By model ("base" first, if there is one, then "model") and metric.
        gains: By metric; of the model over the base, if there is one.
        confusion: Confusion matrix by model; only for classification.
        samples: One for each question, as written to samples.jsonl.
    """

    scores: dict[str, dict[str, Score]]
    gains: dict[str, Score]
    confusion: dict[str, Any]
    samples: list[dict[str, Any]]


def score_answers(
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    *,
    base_answers: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Result:
    """Score the answers to questions.

    Args:
        questions: With references.
        answers: By id of the question, each with the text of its "answer".
        metrics: Names of metrics.
        base_answers: Those of the base, to be compared with.
        seed: Of the bootstrap.

    Raises:
        ValueError: A metric does not suit the references.
    """
    by_model = {BASE: base_answers} if base_answers else {}
    by_model[MODEL] = answers
    scored: dict[str, dict[str, Scored]] = {}
    for name, own in by_model.items():
        samples = [
            Sample(str(q.id), q.references, str(own[str(q.id)]["answer"])) for q in questions
        ]
        scored[name] = compute(metrics, samples)
    gains = {}
    if base_answers:
        gains = differences(scored[BASE], scored[MODEL], seed=seed)
    details = {
        name: next((one.details for one in own.values() if one.details), None)
        for name, own in scored.items()
    }
    return Result(
        scores={name: with_intervals(own, seed=seed) for name, own in scored.items()},
        gains=gains,
        confusion={name: one for name, one in details.items() if one},
        samples=[
            _line(question, place, by_model, scored) for place, question in enumerate(questions)
        ],
    )


def _line(
    question: Question,
    place: int,
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    scored: Mapping[str, Mapping[str, Scored]],
) -> dict[str, Any]:
    """Write one sample: those of the base stand under "base_answer" and "base_scores"."""
    references = list(question.references)
    line: dict[str, Any] = {
        "id": question.id,
        "index": question.where.index,
        "prompt": question.turns[-1].text,
        "reference": references[0] if len(references) == 1 else references,
    }
    for name, prefix in ((MODEL, ""), (BASE, "base_")):
        if name in answers:
            line[f"{prefix}answer"] = answers[name][str(question.id)]["answer"]
            line[f"{prefix}scores"] = {
                metric: round(float(one.per_sample[place]), 6)
                for metric, one in scored[name].items()
            }
    return line


def throughput(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Sum up how fast answers were generated, and how long they are.

    Args:
        answers: Those of one model, with numbers of tokens and seconds; those without are left out.

    Returns:
        Empty if nothing was generated. Rates are those of one process.
    """
    timed = [one for one in answers.values() if "seconds" in one]
    if not timed:
        return {}
    seconds = max(sum(one["seconds"] for one in timed), 1e-9)
    tokens = sum(one["num_tokens"] for one in timed)
    return {
        "samples": len(timed),
        "tokens_per_answer": round(tokens / len(timed), 2),
        "cut_off": sum(not one["complete"] for one in timed),
        "seconds": round(seconds, 3),
        "samples_per_second": round(len(timed) / seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
    }
