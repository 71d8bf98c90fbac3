"""What happens on the page, apart from how it looks: questions, answers, and notes about them."""

import asyncio
import html
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v.inference.faults import describe_fault
from phi3v.inference.sampling import RowSampling
from phi3v.inference.service import Service, Wish
from phi3v.inference.talk import Exchange, Talk, as_uploads

logger = logging.getLogger(__name__)
_SEEDS = 2**31
# Every view carries the whole conversation; a browser that gets one per token falls behind.
_SECONDS_BETWEEN_VIEWS = 0.05


@dataclass(frozen=True)
class Choices:
    """Where the controls of the page stand, in their order there."""

    system: str | None
    length: float
    temperature: float
    top_p: float
    penalty: float
    crops: float
    frames: float
    seed: float | None
    compare: bool

    def wish(self, *, adapted: bool = True) -> Wish:
        """Write the choices as a wish for an answer."""
        seed = None if self.seed is None or self.seed < 0 else int(self.seed) % _SEEDS
        sampling = RowSampling(self.temperature, self.top_p, self.penalty, seed)
        return Wish(int(self.length), sampling, (), adapted, int(self.crops), int(self.frames))


@dataclass(frozen=True)
class View:
    """What the page shows.

    Attributes:
        talk: The conversation.
        note: HTML of the line below it; None leaves it.
        busy: Whether the box waits for an answer; None leaves it as it is.
        asked: A question to put back into its box.
    """

    talk: Talk
    note: str | None = None
    busy: bool | None = False
    asked: Mapping[str, Any] | None = None


class Host:
    """Answers the visitors of the page.

    Args:
        service: The model.
        uploads: Folder of uploaded files.
    """

    def __init__(self, service: Service, uploads: Path) -> None:
        self._service = service
        self._uploads = uploads

    async def ask(
        self, asked: Mapping[str, Any], talk: Talk, choices: Choices
    ) -> AsyncIterator[View]:
        """Ask a question, and yield views while it is answered.

        Args:
            asked: Content of the box: "text", and "files" with paths of uploads.
            talk: The conversation so far, which stays as it is when the question is refused.
            choices: Where the controls stand.
        """
        text = (asked.get("text") or "").strip()
        try:
            uploads = as_uploads(asked.get("files") or [], self._uploads)
        except ValueError as error:
            yield View(talk, alert(str(error)))
            return
        if not text:
            message = "Write a question to the files" if uploads else "Write a question first"
            yield View(talk, alert(message), asked=asked)
            return
        longer = Talk([*talk.exchanges, Exchange(text, uploads)])
        async for view in self._answer(longer, talk, choices, asked):
            yield view

    async def ask_again(self, talk: Talk, choices: Choices) -> AsyncIterator[View]:
        """Ask the last question once more, and yield views while it is answered."""
        if not talk.exchanges:
            yield View(talk, alert("There is no question yet"))
            return
        last = talk.exchanges[-1]
        renewed = Talk([*talk.exchanges[:-1], Exchange(last.text, last.uploads)])
        async for view in self._answer(renewed, talk, choices):
            yield view

    async def _answer(
        self,
        talk: Talk,
        before: Talk,
        choices: Choices,
        asked: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[View]:
        """Answer the last question of a talk, by both models in turn when they are compared."""
        if choices.compare:
            talk.extend_answer(False, "")
        yield View(talk, status("Waiting for the answer"), busy=True)
        try:
            for adapted in (True, False) if choices.compare else (True,):
                async for note in self._listen(talk, adapted, choices):
                    yield View(talk, note, busy=None)
        except Exception as error:  # whatever it was, the visitor gets a message
            fault = describe_fault(error)
            if fault.status == 500:
                logger.exception("a question of the page failed")
            refused = not talk.exchanges[-1].answer
            yield View(
                before if refused else talk,
                alert(fault.message),
                asked=asked if refused else None,
            )
            return
        yield View(talk, await self.count(talk, choices))

    async def _listen(self, talk: Talk, adapted: bool, choices: Choices) -> AsyncIterator[str]:
        """Let one model answer the last question; the talk grows, and notes are yielded."""
        scheduler, text, next_view = self._service.scheduler, "", 0.0
        talk.extend_answer(adapted, text)
        with scheduler.place():
            messages = talk.messages(choices.system or "", adapted=adapted)
            answer, num_tokens = await self._service.ask(messages, choices.wish(adapted=adapted))
        limit = self._service.max_context
        try:
            async for piece in answer:
                text += piece.text
                talk.extend_answer(adapted, text)
                if (now := time.monotonic()) < next_view:
                    continue
                next_view = now + _SECONDS_BETWEEN_VIEWS
                yield status(f"Answering: {num_tokens + piece.num_tokens:,} of {limit:,} tokens")
        finally:
            answer.cancel()

    async def count(self, talk: Talk, choices: Choices) -> str:
        """Return a note with the tokens of the conversation, its last answer included."""
        if not talk.exchanges:
            return status("")
        messages = talk.messages(choices.system or "")
        try:
            tokens, of_pictures = await asyncio.to_thread(
                self._service.count_tokens, messages, choices.wish()
            )
        except ValueError as error:
            return alert(str(error))
        encode = self._service.processor.tokenizer.encode
        tokens += len(encode(talk.exchanges[-1].answer, add_special_tokens=False))
        pictures = f", {of_pictures:,} of them for pictures" if of_pictures else ""
        limit = self._service.max_context
        return status(f"This conversation has {tokens:,} of {limit:,} tokens{pictures}")


def status(text: str) -> str:
    """Write a note."""
    return f'<p role="status">{html.escape(text)}</p>'


def alert(text: str) -> str:
    """Write a note that something is wrong."""
    return f'<p role="alert" class="error">{html.escape(text)}</p>'
