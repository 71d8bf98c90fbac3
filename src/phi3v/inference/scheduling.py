"""Whose turn it is: requests wait in one line, and one thread answers them in batches.

The first in line is always in the next batch; those behind it that fit (same adapter switch, room
in rows and tokens) come with it. A batch waits a moment for company and then runs until its last
answer ends. What waits is bounded, and so is what is being opened on its way into the line.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import torch

from phi3v.inference.answering import AnswerPiece, AnswerRequest, Row, answer_rows
from phi3v.inference.prefixes import MAX_KEPT_TOKENS, PrefixCache
from phi3v.model.processing import Phi3VProcessor

logger = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """So many requests wait that one more is not taken."""


class AnswerError(RuntimeError):
    """The generation failed; the cause is in the log."""


class StoppedError(RuntimeError):
    """The server stops before the answer is complete."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the line and of a batch.

    Attributes:
        max_batch_size: Most answers at once.
        max_batch_tokens: Most tokens of a batch, padding and answers included; a single request
            may be longer.
        max_waiting: Most requests that wait or are being opened.
        batch_window: Seconds that the first in line waits for company.
        max_kept_tokens: Most tokens of conversations that are kept for their next turn.
        static_cache: Whether caches have a fixed length; see `GenerationSettings`.
    """

    max_batch_size: int = 8
    max_batch_tokens: int = 32768
    max_waiting: int = 64
    batch_window: float = 0.01
    max_kept_tokens: int = MAX_KEPT_TOKENS
    static_cache: bool = False


class Answer:
    """An answer on its way; iterate over its pieces."""

    def __init__(self, row: Row, pieces: "asyncio.Queue[AnswerPiece | Exception]") -> None:
        self._row = row
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[AnswerPiece]:
        """Yield the pieces; leaving early stops the generation.

        Raises:
            Exception: What ended the answer.
        """
        try:
            while True:
                piece = await self._pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the generation; of no effect on an answer that is complete."""
        self._row.cancel()


class Scheduler:
    """Owns the model: its generation runs in one thread, in batches.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it.
        processor: Its processor.
        limits: Bounds.
    """

    def __init__(self, model: Any, processor: Phi3VProcessor, limits: Limits | None = None) -> None:
        self._model = model
        self._processor = processor
        self.limits = limits or Limits()
        self._prefixes = PrefixCache(self.limits.max_kept_tokens)
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._num_opening = 0
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def check_room(self) -> None:
        """Check that one more request would be taken.

        Raises:
            BusyError: The line is full.
            StoppedError: The server stops.
        """
        with self._changed:
            if self._closed:
                raise StoppedError("the server is stopping")
            waiting = sum(not row.done for row in self._waiting) + self._num_opening
            if waiting >= self.limits.max_waiting:
                raise BusyError(f"{waiting} requests wait already; try again soon")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in line while a request is opened; raises as `check_room` does."""
        with self._changed:
            self.check_room()
            self._num_opening += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_opening -= 1

    def submit(self, request: AnswerRequest) -> Answer:
        """Put a request in line; to be called in a running event loop, holding a place.

        Raises:
            StoppedError: The server stops.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[AnswerPiece | Exception] = asyncio.Queue()

        def deliver(piece: AnswerPiece | Exception) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it the reader
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        row = Row(request, self._processor, deliver)
        with self._changed:
            if self._closed:
                raise StoppedError("the server is stopping")
            self._waiting.append(row)
            self._changed.notify_all()
        return Answer(row, pieces)

    def counts(self) -> dict[str, int]:
        """Count requests by where they are."""
        with self._changed:
            return {
                "running": sum(not row.done for row in self._running),
                "waiting": sum(not row.done for row in self._waiting),
                "opening": self._num_opening,
            }

    def close(self) -> None:
        """Stop all answers, those in work after their next token; nothing is taken any more."""
        with self._changed:
            self._closed = True
            rows = [*self._waiting, *self._running]
            self._waiting.clear()
            self._changed.notify_all()
        for row in rows:
            row.fail(StoppedError("the server is stopping"))

    def join(self, timeout: float) -> bool:
        """Wait for the thread after `close`, and tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while rows := self._next_batch():
            try:
                self._answer(rows)
            except torch.OutOfMemoryError as error:
                _fail(rows, error)
            except Exception:  # the thread must live, whatever a request does
                logger.exception("the generation failed")
                _fail(rows, AnswerError("the generation failed"))

    def _next_batch(self) -> list[Row]:
        """Wait for the next batch; empty when the server stops."""
        with self._changed:
            self._running = []
            while not self._closed:
                self._waiting = [row for row in self._waiting if not row.done]
                if not self._waiting:
                    self._changed.wait()
                    continue
                until = time.monotonic() + self.limits.batch_window
                while not self._closed and len(self._waiting) < self.limits.max_batch_size:
                    if not self._changed.wait(until - time.monotonic()):
                        break
                self._running = self._take()
                if self._running:
                    return self._running
            return []

    def _take(self) -> list[Row]:
        """Take the first in line and those that fit beside it out of the line."""
        taken: list[Row] = []
        for row in [row for row in self._waiting if not row.done]:
            rows = [*taken, row]
            longest = max(len(one.request.prompt.input_ids) for one in rows)
            tokens = len(rows) * (longest + max(one.request.max_new_tokens for one in rows))
            fits = tokens <= self.limits.max_batch_tokens
            alike = not taken or row.request.adapted == taken[0].request.adapted
            if not taken or (fits and alike and len(rows) <= self.limits.max_batch_size):
                taken = rows
        self._waiting = [row for row in self._waiting if not row.done and row not in taken]
        return taken

    def _answer(self, rows: list[Row]) -> None:
        adapted = rows[0].request.adapted
        # PEFT's own switch: it bypasses adapters and fully trained copies of modules alike.
        with torch.inference_mode(), nullcontext() if adapted else self._model.disable_adapter():
            try:
                static = self.limits.static_cache
                answer_rows(self._model, self._processor, rows, self._prefixes, static_cache=static)
            except torch.OutOfMemoryError:
                kept = self._prefixes.clear()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                fresh = [row for row in rows if row.num_tokens == 0 and not row.done]
                if (len(rows) == 1 and not kept) or len(fresh) < len(rows):
                    raise
                logger.warning("out of memory with %d requests at once; one by one", len(rows))
                for row in fresh:
                    self._answer([row])


def _fail(rows: list[Row], error: Exception) -> None:
    for row in rows:
        row.fail(error)
