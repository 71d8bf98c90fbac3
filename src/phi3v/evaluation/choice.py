"""Chooses metrics by looking at the reference answers."""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from phi3v.evaluation.boxes import read_box
from phi3v.evaluation.captions import is_installed
from phi3v.evaluation.classes import label_of
from phi3v.evaluation.matching import read_number

MOST_LABELS = 30
LEAST_SAMPLES_PER_LABEL = 5
MOST_WORDS_OF_SHORT = 6
PEOPLE_OF_VQA = 10
_NEEDS = {"rouge_l": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}


class Choice(NamedTuple):
    """Metrics by name, the first the one that matters most, and why these."""

    names: list[str]
    reason: str


def choose_metrics(references: Sequence[Sequence[str]]) -> Choice:
    """Choose the metrics that suit the answers of a data set.

    Args:
        references: The right answers of every sample, at least one sample.

    Returns:
        The choice. Metrics whose library is not installed are left out, and the reason says so.
    """
    names, reason = _choose(references)
    absent = [name for name in names if name in _NEEDS and not is_installed(_NEEDS[name])]
    if absent:
        reason += f"; without {', '.join(absent)}, which needs pip install 'phi3v[eval]'"
    return Choice([name for name in names if name not in absent], reason)


def _choose(references: Sequence[Sequence[str]]) -> Choice:
    count = len(references)
    every = [text for one in references for text in one]
    if all(read_box(text) for text in every):
        return Choice(["box_accuracy", "box_iou"], f"all {count} references are boxes")
    if all(len(one) >= PEOPLE_OF_VQA for one in references):
        return Choice(
            ["vqa_accuracy", "anls"], f"every question has {PEOPLE_OF_VQA} or more references"
        )
    labels = {label_of(text) for text in every}
    single = all(len({label_of(text) for text in one}) == 1 for one in references)
    num_words = mean(len(text.split()) for text in every)
    is_short = num_words <= MOST_WORDS_OF_SHORT
    few = 1 < len(labels) <= min(MOST_LABELS, count // LEAST_SAMPLES_PER_LABEL)
    if single and few and is_short:
        return Choice(
            ["accuracy", "macro_f1", "exact_match"],
            f"the {count} references are {len(labels)} different labels",
        )
    num_numbers = sum(read_number(text) is not None for text in every)
    if is_short and 2 * num_numbers >= len(every):
        share = f"{num_numbers} of {len(every)} references are numbers"
        return Choice(["relaxed_accuracy", "exact_match", "anls"], share)
    described = f"references have {num_words:.1f} words on average"
    if is_short:
        return Choice(["exact_match", "anls", "token_f1"], described)
    if mean(len(one) for one in references) >= 2:
        described += f" and {len(every) / count:.1f} per question"
        return Choice(["cider", "rouge_l", "bleu", "chrf"], described)
    return Choice(["rouge_l", "chrf", "bleu", "token_f1"], described)
