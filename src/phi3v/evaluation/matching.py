"""Metrics of short answers: how well the whole answer matches one reference. The best one counts.

Source:
    ANLS: Biten et al. 2019. Relaxed accuracy: Methani et al. 2020, Masry et al. 2022 (ChartQA).
    Token F1: Rajpurkar et al. 2016 (SQuAD).
"""

import re
import string
from collections import Counter

from phi3v.evaluation.samples import best_of

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def matches_exactly(answer: str, reference: str) -> float:
    """Tell whether two texts are the same, outer white space aside."""
    return float(answer.strip() == reference.strip())


def edit_distance(first: str, second: str) -> int:
    """Count the insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            replaced = diagonal + (letter != other)
            diagonal = row[place]
            row[place] = min(replaced, diagonal + 1, row[place - 1] + 1)
    return row[-1]


def edit_similarity(answer: str, reference: str) -> float:
    """Compare by edit distance over the longer length; below one half alike counts nothing.

    Case and the width of white space do not matter.
    """
    first, second = (" ".join(text.lower().split()) for text in (answer, reference))
    longer = max(len(first), len(second))
    if not longer:
        return 1.0
    # Too different in length to reach the threshold: answers that ramble on are decided at once.
    if abs(len(first) - len(second)) >= ANLS_THRESHOLD * longer:
        return 0.0
    distance = edit_distance(first, second) / longer
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def read_number(text: str) -> float | None:
    """Read a number; "5%" is 0.05. None where the text is no number."""
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def matches_relaxed(answer: str, reference: str) -> float:
    """Tell whether a number is within 5 % of the reference; other texts must match but for case."""
    found, expected = read_number(answer), read_number(reference)
    if found is not None and expected:
        return float(abs(found - expected) / abs(expected) <= RELAXED_TOLERANCE)
    return float(answer.strip().lower() == reference.strip().lower())


def tokens_of(text: str) -> list[str]:
    """Split into lower-case words without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def token_overlap(answer: str, reference: str) -> float:
    """Compute F1 over the words that both have; two texts without words are alike."""
    found, expected = tokens_of(answer), tokens_of(reference)
    if not found or not expected:
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected))


exact_match = best_of(matches_exactly)
anls = best_of(edit_similarity)
relaxed_accuracy = best_of(matches_relaxed)
token_f1 = best_of(token_overlap)
