"""What the page is sent while an answer grows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from phi3v.inference.answering import AnswerPiece
from phi3v.inference.service import Service
from phi3v.inference.talk import Talk
from phi3v.inference.visiting import Choices, Host, View
from phi3v.model.processing import Phi3VProcessor

CHOICES = Choices("", 60, 0.0, 1.0, 1.0, 4, 4, None, False)


class Hurried:
    """An answer of a thousand pieces that come as fast as they are taken."""

    async def __aiter__(self) -> AsyncIterator[AnswerPiece]:
        for place in range(1000):
            yield AnswerPiece("a", place + 1)

    def cancel(self) -> None:
        pass


def test_views_are_fewer_than_tokens_and_the_last_one_is_whole(
    model: Any, processor: Phi3VProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(model, processor, "tiny")

    async def ask(*_: Any) -> tuple[Hurried, int]:
        return Hurried(), 3

    async def watch() -> list[View]:
        question = {"text": "Hm", "files": []}
        return [view async for view in Host(service, tmp_path).ask(question, Talk(), CHOICES)]

    monkeypatch.setattr(service, "ask", ask)
    views = asyncio.run(watch())
    assert 3 <= len(views) < 500
    assert views[-1].talk.exchanges[-1].answer == "a" * 1000
