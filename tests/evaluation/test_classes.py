import numpy as np
import pytest

from phi3v.evaluation.classes import accuracy, macro_f1
from phi3v.evaluation.samples import Sample

# (right, answered): cat 2 of 3, dog 1 of 2, and an answer that is no label.
PAIRS = [("cat", "Cat."), ("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", "a house")]
SAMPLES = [Sample(str(i), (right,), found) for i, (right, found) in enumerate(PAIRS)]


def test_accuracy_ignores_case_and_a_last_period() -> None:
    assert accuracy(SAMPLES).score == pytest.approx(3 / 5)


def test_macro_f1_is_the_mean_over_labels() -> None:
    cat, dog = 2 * 2 / (3 + 2), 2 * 1 / (2 + 2)
    assert macro_f1(SAMPLES).score == pytest.approx((cat + dog) / 2)


def test_the_confusion_matrix_has_a_column_for_answers_that_are_no_label() -> None:
    details = accuracy(SAMPLES).details
    assert details["columns"] == ["cat", "dog", "(other)"]
    assert details["counts"] == [[2, 1, 0], [0, 1, 1]]


def test_a_label_that_a_resample_lacks_does_not_count() -> None:
    assert macro_f1(SAMPLES).total(np.array([0, 1])) == 1.0


def test_different_references_are_no_label() -> None:
    with pytest.raises(ValueError, match="sample '7' has 2 different references"):
        accuracy([Sample("7", ("cat", "dog"), "cat")])


def test_equal_references_are_one_label() -> None:
    assert accuracy([Sample("7", ("cat", "Cat"), "cat")]).score == 1
