"""Hand-worked cases, and the public functions of other libraries where they are installed."""

import random

import numpy as np
import pytest

from phi3v.evaluation.captions import bleu, chrf, cider, rouge_l, words_of
from phi3v.evaluation.samples import Sample

WORDS = "a dog runs on the green grass near an old house".split()


def captions(count: int, num_references: int, seed: int = 0) -> list[Sample]:
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))

    samples = []
    for number in range(count):
        references = tuple(text() for _ in range(generator.randint(1, num_references)))
        answer = references[0] if generator.random() < 0.3 else text()
        samples.append(Sample(str(number), references, answer))
    return samples


def test_rouge_l_is_f1_of_the_longest_common_subsequence() -> None:
    pytest.importorskip("rouge_score")
    sample = Sample("s", ("the cat sat", "police killed the gunman"), "police kill the gunman")
    # Common: police, the, gunman; 4 words each.
    assert rouge_l([sample]).score == pytest.approx(3 / 4)


@pytest.mark.parametrize(("metric", "name"), [(bleu, "BLEU"), (chrf, "CHRF")])
def test_corpus_scores_are_those_of_sacrebleu(metric: object, name: str) -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    samples = captions(40, 3)
    most = max(len(one.references) for one in samples)
    columns = [[(one.references + (None,) * 3)[k] for one in samples] for k in range(most)]
    expected = getattr(metrics, name)().corpus_score([one.answer for one in samples], columns)
    result = metric(samples)  # type: ignore[operator]
    assert result.score == pytest.approx(expected.score)
    assert 1 < result.score < 100
    # A part of the samples is scored as a corpus of its own.
    part = result.total(np.arange(10))
    expected = getattr(metrics, name)().corpus_score(
        [one.answer for one in samples[:10]], [column[:10] for column in columns]
    )
    assert part == pytest.approx(expected.score)


def test_cider_of_captions_without_common_words_is_ten_for_the_references_themselves() -> None:
    samples = [
        Sample("a", ("one two three four five",), "one two three four five"),
        Sample("b", ("six seven eight nine ten",), "Six, seven, eight, nine, ten."),
    ]
    assert cider(samples).per_sample.tolist() == pytest.approx([10, 10])


def test_cider_by_hand() -> None:
    # Two samples: every word is of one of them and weighs log 2, which cancels out in the cosine.
    # First: 1 common word of 2 and 3, no common bigram; one word too few costs exp(-1 / 72).
    # Second: the same single word, so of four lengths of n-grams one agrees.
    samples = [Sample("a", ("red big cat",), "dog red"), Sample("b", ("dog",), "dog")]
    expected = [10 / 4 / np.sqrt(2 * 3) * np.exp(-1 / 72), 10 / 4]
    assert cider(samples).per_sample.tolist() == pytest.approx(expected)


def test_cider_is_that_of_the_published_code() -> None:
    published = pytest.importorskip("pycocoevalcap.cider.cider")
    samples = captions(30, 4, seed=1)
    expected, each = published.Cider().compute_score(
        {one.id: list(one.references) for one in samples},
        {one.id: [one.answer] for one in samples},
    )
    result = cider(samples)
    assert result.score == pytest.approx(expected)
    np.testing.assert_allclose(result.per_sample, each, rtol=1e-9)


def test_words_lose_case_and_punctuation() -> None:
    assert words_of("The dog's bone, isn't it?") == ["the", "dog's", "bone", "isn't", "it"]
