"""The accuracy of the VQA data sets: an answer is as right as people agree with it."""

import re
from collections.abc import Sequence

from phi3v.evaluation.samples import Sample, Scored, mean_of

_ARTICLES = {"a", "an", "the"}
_NUMBERS = dict(
    zip(
        "none zero one two three four five six seven eight nine ten".split(),
        "0 0 1 2 3 4 5 6 7 8 9 10".split(),
        strict=True,
    )
)
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# Contractions that are understood without their apostrophe. "let's", "we'd" and others that would
# then be another word are left out, as in the official evaluation.
_ONE_APOSTROPHE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't
haven't he'd he's how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've
needn't not've o'clock oughtn't shan't should've shouldn't somebody'd somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd
you'll you're you've"""
_MORE_APOSTROPHES = """couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've
shouldn't've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've
wouldn't've y'all'll y'all'd've you'd've"""


def _contractions() -> dict[str, str]:
    """Map every spelling that lacks one apostrophe to the whole one."""
    table = {}
    for whole in [*_ONE_APOSTROPHE.split(), *_MORE_APOSTROPHES.split()]:
        for place, letter in enumerate(whole):
            if letter == "'":
                table[whole[:place] + whole[place + 1 :]] = whole
    # Two apostrophes short, and the only one of its kind in the official table.
    return table | {"yall'd've": "y'all'd've"}


_CONTRACTIONS = _contractions()


def normalize(text: str) -> str:
    """Bring an answer into the form in which VQA answers are compared.

    Punctuation goes (or becomes a space inside a word), number words become digits, articles go,
    apostrophes of contractions are put in, all is lower case.

    Source:
        Evaluation code of the VQA data set (visualqa.org).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        without = without.replace(mark, "" if at_edge or has_number else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", without).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(samples: Sequence[Sample]) -> Scored:
    """Score by agreement: right in full when three of the other people gave the same answer.

    For each of the reference answers, the matches among the others count a third each, at most one
    in all; the score is the mean of these. A single reference stands for ten equal ones. Answer and
    references are always normalised; the newest official code compares them as they are where all
    ten people agree, older ones do not.

    Raises:
        ValueError: A sample has two or three references, with which no answer could be right.

    Source:
        Antol et al. 2015 and the evaluation code of the data set.
    """
    scores = []
    for sample in samples:
        count = len(sample.references)
        if count in (2, 3):
            raise ValueError(
                f"sample {sample.id!r} has {count} references, but vqa_accuracy asks three people "
                "besides each one; give ten (or at least four), or use exact_match"
            )
        answer = normalize(sample.answer)
        same = [normalize(reference) == answer for reference in sample.references]
        if count == 1:
            scores.append(float(same[0]))
        else:
            matches = sum(same)
            scores.append(sum(min(1.0, (matches - own) / 3) for own in same) / count)
    return mean_of(scores)
