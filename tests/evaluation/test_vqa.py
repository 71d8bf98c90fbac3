"""Expected values are worked by hand from the rule, or printed by the official code where named."""

import pytest

from phi3v.evaluation.samples import Sample
from phi3v.evaluation.vqa import normalize, vqa_accuracy


def score(answer: str, *references: str) -> float:
    return vqa_accuracy([Sample("q1", references, answer)]).score


@pytest.mark.parametrize(
    ("answer", "num_same", "expected"),
    [
        # With 2 of 10: 8 people see 2 matches (2/3), the two themselves see 1 (1/3).
        ("yes", 2, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("yes", 1, (9 * 1 / 3 + 0) / 10),
        # With 3: 7 see 3 matches (1), the three see 2 (2/3).
        ("yes", 3, (7 + 3 * 2 / 3) / 10),
        ("yes", 4, 1.0),
        ("yes", 10, 1.0),
        ("maybe", 10, 0.0),
    ],
)
def test_three_of_the_other_people_make_an_answer_right(
    answer: str, num_same: int, expected: float
) -> None:
    references = ["yes"] * num_same + ["no"] * (10 - num_same)
    assert score(answer, *references) == pytest.approx(expected)


def test_a_single_reference_stands_for_ten() -> None:
    assert (score("The bus.", "bus"), score("a car", "bus")) == (1.0, 0.0)


def test_two_references_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sample 'q1' has 2 references"):
        score("a", "a", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Printed by the official code, processPunctuation and then processDigitArticle.
        ("The Red, Bus!", "red bus"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("1,000 dogs/cats", "1000 dogscats"),
        ("dogs/cats", "dogs cats"),
        ("3.50", "3.50"),
        ("No. 5.", "no 5"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("lets", "lets"),
        ("mother's", "mother's"),
        ("well-known", "well known"),
        (" an\tapple\n", "apple"),
    ],
)
def test_answers_are_normalised_as_the_official_code_does(text: str, expected: str) -> None:
    assert normalize(text) == expected
