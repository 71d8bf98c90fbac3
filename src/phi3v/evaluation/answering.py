"""Generates the answers of an evaluation, each process its share."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.logging import tqdm

from phi3v.data.questions import Question, open_question
from phi3v.model.answers import Conversation, generate_answers
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings


@dataclass(frozen=True)
class Answering:
    """How questions are answered.

    Attributes:
        batch_size: Questions that are answered together.
        settings: How answers are chosen.
        max_num_frames: Most frames of a video.
        with_base: Answer a second time with the adapter switched off.
    """

    batch_size: int
    settings: GenerationSettings
    max_num_frames: int = 10
    with_base: bool = False


def share_out(
    questions: Sequence[Question], batch_size: int, rank: int, world_size: int
) -> list[list[Question]]:
    """Give a process its batches: like with like, the long ones first, dealt in turn.

    Questions of one batch wait for each other, so those with equally many pictures and texts of
    equal length stand together.
    """
    ordered = sorted(questions, key=_effort, reverse=True)
    starts = range(0, len(ordered), batch_size)
    return [ordered[start : start + batch_size] for start in starts][rank::world_size]


def _effort(question: Question) -> tuple[int, int]:
    media = sum(len(turn.media) for turn in question.turns)
    return media, sum(len(turn.text) for turn in question.turns)


def answer_share(
    model: Any,
    processor: Phi3VProcessor,
    batches: Sequence[Sequence[Question]],
    answering: Answering,
    keep: Callable[[list[dict[str, Any]]], object],
    *,
    shows_progress: bool = True,
) -> None:
    """Answer batches of questions and hand the answers on as they are made.

    Args:
        model: ``Phi3VForCausalLM``, or a PEFT model around it.
        processor: Its processor.
        batches: What this process answers.
        answering: How.
        keep: Called with the answers of every batch: id, answer, number of tokens, whether it is
            complete, seconds per question, and the same of the base under "base".
        shows_progress: Draw a bar on a terminal.

    Raises:
        FileNotFoundError: A picture or video is missing.
        ValueError: One cannot be read, a prompt is too long, or the memory is too small; what was
            answered before has been handed on.
    """
    disable = None if shows_progress else True
    with tqdm(total=sum(map(len, batches)), unit="question", disable=disable) as progress:
        for batch in batches:
            conversations = [
                open_question(one, max_num_frames=answering.max_num_frames) for one in batch
            ]
            answers = list(_answer(model, processor, conversations, answering.settings))
            if answering.with_base:
                with without_adapter(model):
                    base = _answer(model, processor, conversations, answering.settings)
                    answers = [
                        one | {"base": other} for one, other in zip(answers, base, strict=True)
                    ]
            keep([{"id": str(q.id)} | one for q, one in zip(batch, answers, strict=True)])
            progress.update(len(batch))


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Switch the adapter of a PEFT model off, and the parts that were trained beside it."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


def _answer(
    model: Any,
    processor: Phi3VProcessor,
    conversations: Sequence[Conversation],
    settings: GenerationSettings,
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    try:
        answers = generate_answers(model, processor, conversations, settings)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the memory is too small for {len(conversations)} questions at once; what was "
            "answered is kept: give the same command with a smaller --batch-size"
        ) from error
    seconds = (time.perf_counter() - started) / len(conversations)
    for answer in answers:
        yield {
            "answer": answer.text,
            "num_tokens": answer.num_tokens,
            "complete": answer.is_complete,
            "seconds": round(seconds, 4),
        }
