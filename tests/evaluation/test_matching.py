"""Hand-worked cases, and other libraries where they are installed."""

import random

import pytest

from phi3v.evaluation.matching import (
    anls,
    edit_distance,
    exact_match,
    matches_relaxed,
    token_f1,
)
from phi3v.evaluation.samples import Sample, Scored


def score(metric: object, answer: str, *references: str) -> float:
    result: Scored = metric([Sample("s", references, answer)])  # type: ignore[operator]
    return result.score


def test_exact_match_ignores_outer_white_space_only() -> None:
    assert score(exact_match, " A bus.\n", "A bus.") == 1
    assert score(exact_match, "a bus.", "A bus.") == 0
    assert score(exact_match, "b", "a", "b") == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_edit_distance(first: str, second: str, expected: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("hello", ["hello"], 1.0),
        ("HELLO  world", ["hello world"], 1.0),
        ("helo", ["hello"], 1 - 1 / 5),
        ("abcd", ["abxy"], 0.0),  # a distance of one half is already too far
        ("abcde", ["abcxy"], 1 - 2 / 5),
        ("hello", ["bye", "hallo"], 1 - 1 / 5),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls(answer: str, references: list[str], expected: float) -> None:
    assert score(anls, answer, *references) == pytest.approx(expected)


def test_anls_is_that_of_the_library() -> None:
    library = pytest.importorskip("anls")
    generator = random.Random(0)
    for _ in range(300):
        texts = ["".join(generator.choices("abAB ", k=generator.randint(0, 8))) for _ in range(3)]
        expected = library.anls_score(texts[0], texts[1:])
        assert score(anls, texts[0], *texts[1:]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("105", "100", 1),
        ("-95", "-100", 1),
        ("14%", "14 %", 1),
        ("14", "14%", 0),  # a percentage is a hundredth, as in the evaluation of ChartQA models
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is near zero but zero as written
        ("Yes", "yes", 1),
        ("1e2", "100", 1),
        ("blue", "100", 0),
    ],
)
def test_relaxed_accuracy(answer: str, reference: str, expected: float) -> None:
    assert matches_relaxed(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the cat sat", ["a cat sat down"], 2 * 2 / (2 + 3)),
        ("Cat, sat!", ["cat sat"], 1.0),
        ("cat cat", ["cat"], 2 * 1 / (2 + 1)),
        ("dog", ["cat", "dog house"], 2 * 1 / (1 + 2)),
        ("the", ["a"], 1.0),
        ("", ["cat"], 0.0),
    ],
)
def test_token_f1(answer: str, references: list[str], expected: float) -> None:
    assert score(token_f1, answer, *references) == pytest.approx(expected)
