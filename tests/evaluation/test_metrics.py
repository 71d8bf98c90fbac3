import numpy as np
import pytest

from phi3v.evaluation import captions
from phi3v.evaluation.choice import choose_metrics
from phi3v.evaluation.metrics import METRICS, compute, differences, with_intervals
from phi3v.evaluation.samples import Sample


def answers(right: int, count: int) -> list[Sample]:
    return [Sample(str(i), ("yes",), "yes" if i < right else "no") for i in range(count)]


def test_the_interval_is_that_of_the_binomial() -> None:
    # 80 of 100: standard error sqrt(0.8 * 0.2 / 100) = 0.04, so 95 % is 0.8 +- 0.078.
    score = with_intervals(compute(["exact_match"], answers(80, 100)))["exact_match"]
    assert score.score == 0.8
    assert score.low == pytest.approx(0.72, abs=0.015)
    assert score.high == pytest.approx(0.88, abs=0.015)


def test_the_same_seed_gives_the_same_interval() -> None:
    scored = compute(["exact_match", "anls"], answers(30, 50))
    assert with_intervals(scored, seed=3) == with_intervals(scored, seed=3)
    assert with_intervals(scored, seed=3) != with_intervals(scored, seed=4)


def test_a_gain_is_paired() -> None:
    # Every sample that was right stays right, so the gain is sure although both scores waver.
    before = compute(["exact_match"], answers(40, 100))
    after = compute(["exact_match"], answers(50, 100))
    gain = differences(before, after)["exact_match"]
    assert gain.score == pytest.approx(0.1)
    assert 0.03 < gain.low < gain.score < gain.high < 0.18


def test_all_metrics_score_equal_texts_best() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    texts = ["[1, 2, 3, 4] red dog ran far", "[5, 6, 7, 8] blue bird flew off"]
    samples = [Sample(text, (text,), text) for text in texts]
    for name, scored in compute(list(METRICS), samples).items():
        assert scored.score == pytest.approx(METRICS[name].best), name


def test_an_unknown_metric_names_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown metric 'rougel'; did you mean rouge_l"):
        compute(["rougel"], answers(1, 2))


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no samples"):
        compute(["anls"], [])


@pytest.mark.parametrize(
    ("references", "first", "reason"),
    [
        ([["[1, 2, 3, 4]"]] * 3, "box_accuracy", "all 3 references are boxes"),
        ([["yes"] * 10, ["2"] * 10], "vqa_accuracy", "10 or more references"),
        ([["cat"], ["dog"]] * 10, "accuracy", "20 references are 2 different labels"),
        ([[str(i * 7.5)] for i in range(9)] + [["red"]], "relaxed_accuracy", "9 of 10"),
        ([[f"Name {i}", f"name no. {i}"] for i in range(9)], "exact_match", "words on average"),
        ([[f"word{i} " * 12] for i in range(9)], "rouge_l", "12.0 words on average"),
        ([[f"word{i} " * 12] * 3 for i in range(9)], "cider", "3.0 per question"),
        ([["yes"]], "exact_match", "1.0 words"),
    ],
)
def test_auto_looks_at_the_references(references: list[list[str]], first: str, reason: str) -> None:
    choice = choose_metrics(references)
    assert choice.names[0] == first
    assert reason in choice.reason
    assert set(choice.names) <= set(METRICS)


def test_auto_goes_without_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3v.evaluation.choice.is_installed", lambda module: False)
    choice = choose_metrics([[f"word{i} " * 12] for i in range(9)])
    assert choice.names == ["token_f1"]
    assert "without rouge_l, chrf, bleu" in choice.reason


def test_a_metric_asked_for_names_its_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"bleu needs sacrebleu.*pip install 'phi3v\[eval\]'"):
        compute(["bleu"], answers(1, 2))


def test_scores_of_parts_are_those_of_the_parts() -> None:
    scored = compute(["token_f1"], answers(3, 6))["token_f1"]
    assert scored.total(np.array([0, 1, 2])) == 1
    assert scored.total(np.array([5])) == 0
