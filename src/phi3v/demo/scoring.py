"""Scores by generated answers: the whole answer must match."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from phi3v.data.questions import parse_question
from phi3v.data.records import Place
from phi3v.demo.digits import is_right
from phi3v.demo.page import Score
from phi3v.evaluation.answering import Answering, answer_share
from phi3v.model.loading import load_model, load_processor
from phi3v.model.settings import GenerationSettings

BATCH = 50

Answers = dict[str, str]


def answer_all(folder: Path, records: Sequence[Mapping[str, Any]], image_folder: Path) -> Answers:
    """Let a model answer the question of every record.

    Args:
        folder: Checkpoint or adapter folder.
        records: LLaVA records of one question about one picture.
        image_folder: Folder of the pictures.

    Returns:
        The generated answer by record id.
    """
    with _no_progress_bar():
        model, processor = load_model(folder, dtype=torch.float32), load_processor(folder)
    questions = [
        parse_question(record, Place("the demo's records", number), image_folder)
        for number, record in enumerate(records)
    ]
    batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    answering = Answering(BATCH, GenerationSettings(max_new_tokens=6))
    found: list[dict[str, Any]] = []
    answer_share(model, processor, batches, answering, found.extend, shows_progress=False)
    return {one["id"]: one["answer"] for one in found}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the library's bar for the moment that a tiny model takes to load."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def score(records: Sequence[Mapping[str, Any]], answers: Answers) -> dict[str, Score]:
    """Count the right answers of each kind of question; the whole answer must match."""
    names = {"digit": "which digit", "parity": "even or odd", "size": "greater than 4"}
    right: dict[str, list[bool]] = {}
    for record in records:
        kind = names[record["id"].rsplit("_", 1)[-1]]
        right.setdefault(kind, []).append(is_right(answers[record["id"]], expected_of(record)))
    return {kind: Score(sum(values), len(values)) for kind, values in right.items()}


def question_of(record: Mapping[str, Any]) -> str:
    """Return the question of a record, with its image tag."""
    return record["conversations"][0]["value"]


def expected_of(record: Mapping[str, Any]) -> str:
    """Return the right answer of a record."""
    return record["conversations"][1]["value"]
