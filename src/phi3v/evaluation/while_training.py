"""Scores the answers of a model that is being trained, on a sample of the validation set."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from phi3v.data.answered import ShownAnswer
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.processes import rank, world_size
from phi3v.data.questions import Question, open_question, question_of
from phi3v.data.turns import MEDIA_TAG
from phi3v.evaluation.answering import Answering, answer_share, share_out
from phi3v.evaluation.choice import Choice
from phi3v.evaluation.gallery import LARGEST_SIDE, write_gallery
from phi3v.evaluation.results import MODEL, score_answers, throughput
from phi3v.evaluation.run_files import STEPS
from phi3v.evaluation.writing import write_result
from phi3v.model.processing import Phi3VProcessor

NUM_SHOWN = 4


def draw_questions(dataset: SupervisedDataset, count: int, seed: int) -> list[Question]:
    """Draw records of a validation set and make questions of them, in the order of the set."""
    places = range(len(dataset))
    drawn = sorted(random.Random(seed).sample(places, min(count, len(places))))
    return [question_of(dataset.record(place)) for place in drawn]


class ValidationScorer:
    """Answers the same questions at every evaluation of a run and scores the answers.

    All processes take part, each with its share of the questions and equally many batches, because
    under ZeRO-3 the library lets them wait for each other with every token. The first one writes
    every evaluation into the folder of the run.

    Args:
        questions: What to ask.
        processor: Of the checkpoint.
        choice: Metrics, and why these.
        answering: How to answer.
        folder: Output folder of the run.
        data: Name of the data, for people.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        processor: Phi3VProcessor,
        choice: Choice,
        answering: Answering,
        folder: Path,
        data: str,
    ) -> None:
        self.questions = list(questions)
        self.processor = processor
        self.choice = choice
        self.answering = answering
        self.folder = folder
        self.data = data

    def __call__(self, model: Any, step: int) -> tuple[dict[str, float], list[ShownAnswer]]:
        """Answer and score; called by all processes together.

        Args:
            model: Bare or PEFT model.
            step: Training steps so far.

        Returns:
            Scores by name of metric, the same in every process; and a few answers.
        """
        own: list[dict[str, Any]] = []
        with generating(model):
            batches = even_share(self.questions, self.answering.batch_size, rank(), world_size())
            answer_share(
                model, self.processor, batches, self.answering, own.extend, shows_progress=False
            )
        answers = {one["id"]: one for part in _gather(own) for one in part}
        result = score_answers(self.questions, answers, self.choice.names)
        if rank() == 0:
            self._write(result, answers, step)
        scores = {name: score.score for name, score in result.scores[MODEL].items()}
        return scores, self._shown(answers) if rank() == 0 else []

    def _write(self, result: Any, answers: dict[str, dict[str, Any]], step: int) -> None:
        target = self.folder / STEPS / f"step-{step:06d}"
        target.mkdir(parents=True, exist_ok=True)
        write_gallery(
            target, self.questions, result.samples, self.choice.names[0],
            max_num_frames=self.answering.max_num_frames,
        )  # fmt: skip
        about = {
            "data": self.data,
            "questions": len(self.questions),
            "model": f"after {step} steps",
            "metrics_because": self.choice.reason,
            "throughput": {MODEL: throughput(answers)},
        }
        write_result(target, result, about)

    def _shown(self, answers: dict[str, dict[str, Any]]) -> list[ShownAnswer]:
        shown = []
        for question in self.questions[:NUM_SHOWN]:
            pictures = open_question(
                question, max_num_frames=self.answering.max_num_frames
            ).pictures
            picture = pictures[0].convert("RGB") if pictures else None
            if picture is not None:
                picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            text = MEDIA_TAG.sub("", question.turns[-1].text).strip()
            answer = answers[str(question.id)]["answer"]
            shown.append(ShownAnswer(text, question.references, answer, picture))
        return shown


def even_share(
    questions: Sequence[Question], batch_size: int, own_rank: int, num_processes: int
) -> list[list[Question]]:
    """Give each process equally many batches; those behind the last one begin again."""
    batches = share_out(questions, batch_size, 0, 1)
    rounds = -(-len(batches) // num_processes)
    places = (own_rank + number * num_processes for number in range(rounds))
    return [batches[place % len(batches)] for place in places]


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Let a model that is being trained generate, and leave it as it was.

    Compiled layers run as they are written: every length of a prompt would compile them anew. The
    pass of the vision tower without pictures, which training needs, would come with every token.
    """
    was_training = model.training
    linked = [
        module for module in model.modules() if getattr(module, "link_vision_without_images", False)
    ]
    model.eval()
    for module in linked:
        module.link_vision_without_images = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in linked:
            module.link_vision_without_images = True
        model.train(was_training)


def _gather(own: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    if not distributed.is_initialized() or world_size() == 1:
        return [own]
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, own)
    return parts
