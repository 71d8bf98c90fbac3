"""Metrics of longer texts by the pieces that answer and references share.

ROUGE-L, BLEU and chrF are those of rouge-score and sacrebleu (extra "eval").
"""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from phi3v.evaluation.samples import Sample, Scored, mean_of

_WORD = re.compile(r"\w+(?:['’]\w+)*")
LONGEST_NGRAM = 4
SIGMA = 6.0


def is_installed(module: str) -> bool:
    """Tell whether a library of the extra "eval" is there."""
    return find_spec(module) is not None


def _need(module: str, metric: str) -> None:
    if not is_installed(module):
        raise ValueError(
            f"{metric} needs {module}, which is not installed: pip install 'phi3v[eval]'"
        )


def rouge_l(samples: Sequence[Sample]) -> Scored:
    """Score by F1 of the longest common subsequence of words; the best reference counts."""
    _need("rouge_score", "rouge_l")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return mean_of(
        [scorer.score_multi(one.references, one.answer)["rougeL"].fmeasure for one in samples]
    )


def bleu(samples: Sequence[Sample]) -> Scored:
    """Score by BLEU of the corpus, 0 to 100; per sample, with effective order."""
    _need("sacrebleu", "bleu")
    from sacrebleu.metrics.bleu import BLEU

    return _by_sacrebleu(samples, BLEU(force=True), BLEU(effective_order=True, force=True))


def chrf(samples: Sequence[Sample]) -> Scored:
    """Score by chrF of the corpus, 0 to 100."""
    _need("sacrebleu", "chrf")
    from sacrebleu.metrics.chrf import CHRF

    return _by_sacrebleu(samples, CHRF(), CHRF())


def _by_sacrebleu(samples: Sequence[Sample], corpus: Any, single: Any) -> Scored:
    """Score with one metric of sacrebleu.

    The counts of every sample are taken once and added up for every resample, as sacrebleu's own
    significance tests do; a test compares the result with its public score.
    """
    most = max(len(one.references) for one in samples)
    columns = [
        [one.references[k] if k < len(one.references) else None for one in samples]
        for k in range(most)
    ]
    counts = np.array(corpus._extract_corpus_statistics([one.answer for one in samples], columns))

    def total(indices: np.ndarray) -> float:
        return float(corpus._compute_score_from_stats(counts[indices].sum(axis=0).tolist()).score)

    per_sample = [single.sentence_score(one.answer, one.references).score for one in samples]
    return Scored(np.array(per_sample, np.float64), total)


def words_of(text: str) -> list[str]:
    """Split into lower-case words; punctuation is left out, as for captions of COCO."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST_NGRAM + 1)
        for start in range(len(words) - length + 1)
    )


def cider(samples: Sequence[Sample]) -> Scored:
    """Score captions by CIDEr-D, 0 to 10: n-grams weighted by how rare they are among the samples.

    The weights come from the references of all samples; one sample alone has no rare words and
    scores 0.

    Source:
        Vedantam et al. 2015; sigma, clipping and scale as in the evaluation code of COCO captions.
    """
    references = [[words_of(text) for text in one.references] for one in samples]
    grams = [[_ngrams(words) for words in one] for one in references]
    frequency = Counter(gram for one in grams for gram in set().union(*one))
    num_samples = np.log(len(samples))

    def weigh(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST_NGRAM)]
        for gram, count in counts.items():
            rarity = num_samples - np.log(max(frequency[gram], 1))
            weights[len(gram) - 1][gram] = count * rarity
        return weights

    scores = []
    for sample, own_words, own_grams in zip(samples, references, grams, strict=True):
        words = words_of(sample.answer)
        answer = weigh(_ngrams(words))
        found = [
            _likeness(answer, weigh(counts)) * _length_penalty(len(words), len(reference))
            for counts, reference in zip(own_grams, own_words, strict=True)
        ]
        scores.append(10 * float(np.mean(found)))
    return mean_of(scores)


def _length_penalty(num_words: int, expected: int) -> float:
    # The published code counts bigrams here, of which a text has one fewer than words.
    difference = max(num_words - 1, 0) - max(expected - 1, 0)
    return float(np.exp(-(difference**2) / (2 * SIGMA**2)))


def _likeness(
    answer: list[dict[tuple[str, ...], float]], reference: list[dict[tuple[str, ...], float]]
) -> float:
    """Average the clipped cosine of both over the lengths of n-grams."""
    cosines = []
    for own, other in zip(answer, reference, strict=True):
        norms = [np.sqrt(sum(v * v for v in weights.values())) for weights in (own, other)]
        product = sum(min(w, other[g]) * other[g] for g, w in own.items() if g in other)
        cosines.append(product / (norms[0] * norms[1]) if all(norms) else 0.0)
    return float(np.mean(cosines))
