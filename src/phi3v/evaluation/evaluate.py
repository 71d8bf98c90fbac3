"""The command ``phi3v evaluate``: a data set and a checkpoint in, scores out."""

import argparse
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from phi3v.data.processes import (
    connect,
    decided_by_first,
    disconnect,
    one_voice,
    quiet_unless_first,
    rank,
    wait_for_all,
    world_size,
)
from phi3v.data.questions import Question, read_questions, split_turns
from phi3v.data.sources import open_records
from phi3v.evaluation.answering import Answering, answer_share, share_out
from phi3v.evaluation.choice import Choice, choose_metrics
from phi3v.evaluation.flags import (
    AUTO,
    answer_settings,
    build_parser,
    check_flags,
    output_folder,
)
from phi3v.evaluation.gallery import write_gallery
from phi3v.evaluation.results import BASE, MODEL, score_answers, throughput
from phi3v.evaluation.store import AnswerStore, read_predictions
from phi3v.evaluation.writing import print_result, write_result
from phi3v.model.flags import load_from_flags
from phi3v.model.loading import load_processor
from phi3v.model.settings import GenerationSettings

Answers = dict[str, dict[str, Any]]


def main(argv: list[str]) -> int:
    """Run ``phi3v evaluate``."""
    level = logging.WARNING if rank() == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    with one_voice(), quiet_unless_first():
        flags = build_parser().parse_args(argv)
        check_flags(flags)
        questions = choose_questions(flags)
        choice = choose(flags.metrics, questions)
        folder = output_folder(flags)
        answers = _given_answers(flags, questions)
        connect()
        store = AnswerStore(folder)
        settings = answer_settings(flags, open_records(flags.data_path).fingerprint())
        kept = decided_by_first(lambda: store.prepare(settings, overwrite=flags.overwrite))
    if rank() == 0:
        _announce(flags, questions, choice, kept)
    if answers is None:
        generate(flags, questions, store)
        answers = store.read()
    if rank() == 0:
        _score(flags, questions, answers, choice, folder)
    disconnect()
    return 0


def choose_questions(flags: argparse.Namespace) -> list[Question]:
    """Read the questions of the data set that are to be asked.

    Raises:
        FileNotFoundError: The data file or one of its media is missing.
        ValueError: The data are faulty, empty, or have no right answers.
    """
    questions = read_questions(
        flags.data_path,
        image_folder=flags.image_folder,
        system=flags.system,
        may_repeat_ids=True,
    )
    if flags.turns == "all":
        questions = [part for question in questions for part in split_turns(question)]
    questions = with_own_ids(questions)
    if flags.limit and flags.limit < len(questions):
        drawn = random.Random(flags.seed).sample(range(len(questions)), flags.limit)
        questions = [questions[place] for place in sorted(drawn)]
    if missing := [one for one in questions if not one.references]:
        raise ValueError(
            f"{missing[0].name} has no right answer, like {len(missing) - 1} others; end records "
            "with the answer, or list it under 'reference'"
        )
    return questions


def with_own_ids(questions: Sequence[Question]) -> list[Question]:
    """Tell questions of the same id apart by the place of their records."""
    counts = Counter(str(question.id) for question in questions)
    return [
        replace(one, id=f"{one.id}@{place}") if counts[str(one.id)] > 1 else one
        for place, one in enumerate(questions)
    ]


def choose(metrics: Sequence[str], questions: Sequence[Question]) -> Choice:
    """Take the metrics that are asked for, or choose them by the right answers."""
    if list(metrics) == [AUTO]:
        return choose_metrics([question.references for question in questions])
    return Choice(list(dict.fromkeys(metrics)), "as asked for")


def _given_answers(flags: argparse.Namespace, questions: Sequence[Question]) -> Answers | None:
    """Read the answers of --predictions and check that they fit the questions."""
    if flags.predictions is None:
        return None
    return fitting(read_predictions(flags.predictions), questions, flags.predictions)


def fitting(answers: Answers, questions: Sequence[Question], path: str) -> Answers:
    """Check that there is an answer to every question.

    Raises:
        ValueError: Answers are missing, or none of the ids is known.
    """
    names = [str(question.id) for question in questions]
    if missing := [name for name in names if name not in answers]:
        surplus = sorted(answers.keys() - set(names))
        known = f"; it has answers to {surplus[0]!r}, which is no question here" if surplus else ""
        raise ValueError(
            f"{path} does not fit the data: {len(missing)} of {len(names)} questions have no "
            f"answer, first {missing[0]!r}{known}"
        )
    return {name: answers[name] for name in names}


def _announce(
    flags: argparse.Namespace, questions: Sequence[Question], choice: Choice, kept: int
) -> None:
    what = "last answers" if flags.turns == "last" else "answers"
    print(f"{flags.data_path}: {len(questions)} questions ({what} of the records)")
    print(f"metrics: {', '.join(choice.names)}\n  because {choice.reason}")
    if kept:
        print(f"{kept} answers of an earlier start are kept")
    sys.stdout.flush()


def generate(flags: argparse.Namespace, questions: Sequence[Question], store: AnswerStore) -> None:
    """Answer what is not answered yet, each process its share, into the store."""
    done = store.read()
    missing = [question for question in questions if str(question.id) not in done]
    wait_for_all()
    if missing:
        answering = Answering(
            flags.batch_size,
            GenerationSettings(
                max_new_tokens=flags.max_new_tokens,
                num_beams=flags.num_beams,
                repetition_penalty=flags.repetition_penalty,
            ),
            flags.max_frames,
            flags.compare_base,
        )
        if flags.device is None and torch.cuda.is_available():
            flags.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        with one_voice():
            processor = load_processor(flags.model_path, flags.num_crops, flags.model_base)
            model = load_from_flags(flags)
        answer_share(
            model,
            processor,
            share_out(missing, flags.batch_size, rank(), world_size()),
            answering,
            lambda answers: store.append(rank(), answers),
        )
    wait_for_all()


def _score(
    flags: argparse.Namespace,
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[str, Any]],
    choice: Choice,
    folder: Path,
) -> None:
    base: Mapping[str, Mapping[str, Any]] | None = None
    if flags.base_predictions:
        base = fitting(read_predictions(flags.base_predictions), questions, flags.base_predictions)
    elif flags.compare_base:
        base = {name: one["base"] for name, one in answers.items()}
    result = score_answers(questions, answers, choice.names, base_answers=base, seed=flags.seed)
    speed = {MODEL: throughput(answers), BASE: throughput(base or {})}
    write_gallery(
        folder, questions, result.samples, choice.names[0],
        max_num_frames=flags.max_frames, seed=flags.seed,
    )  # fmt: skip
    write_result(
        folder,
        result,
        {
            "data": flags.data_path,
            "questions": len(questions),
            "model": flags.model_path or flags.predictions,
            "metrics_because": choice.reason,
            "seed": flags.seed,
            "throughput": {name: numbers for name, numbers in speed.items() if numbers},
        },
    )
    print_result(result, speed, folder)
