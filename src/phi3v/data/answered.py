"""What passes between a training run and whoever scores its answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image


class ShownAnswer(NamedTuple):
    """An answer for people to look at.

    Attributes:
        question: The question, without its tags.
        references: Right answers.
        answer: What the model answered.
        picture: The first picture or frame, made small.
    """

    question: str
    references: tuple[str, ...]
    answer: str
    picture: Image.Image | None


# Called by all processes together with the bare model and the step; gives the same scores by name
# to each of them, and a few answers to show.
AnswerScorer = Callable[[Any, int], tuple[dict[str, float], list[ShownAnswer]]]
