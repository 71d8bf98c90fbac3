"""Generation in a thread of its own, so that words can be read while they are made."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class _IdStreamer(BaseStreamer):
    """Hands every new id on; the prompt, which comes first, is dropped."""

    def __init__(self, receive: Callable[[int], None]) -> None:
        self._receive = receive
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        if self._in_prompt:
            self._in_prompt = False
            return
        for token_id in value.flatten().tolist():
            self._receive(token_id)

    def end(self) -> None:
        pass


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(
        self, input_ids: torch.LongTensor, scores: tuple[Tensor] | None, **kwargs: Any
    ) -> torch.BoolTensor:
        stopped = torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
        return stopped  # type: ignore[return-value]  # full() of a bool makes a BoolTensor


def stream_ids(generate: Callable[..., Any], inputs: Mapping[str, Any]) -> Generator[int]:
    """Generate one answer and yield its ids as they come.

    Closing the iterator stops the generation after the token in work.

    Args:
        generate: The model's own, or one that takes a streamer and stopping criteria as it does.
        inputs: Inputs of one prompt and options of ``generate``.

    Raises:
        Exception: Whatever the generation raised.
    """
    queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
    stop = Event()

    def run() -> None:
        try:
            generate(
                **inputs,
                streamer=_IdStreamer(queue.put),
                stopping_criteria=StoppingCriteriaList([_StopWhenSet(stop)]),
            )
            queue.put(None)
        except BaseException as error:  # raised again where the answer is read
            queue.put(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


class TextPieces:
    """Turns ids into pieces of text that join to the decoded whole.

    All ids are decoded again for every piece: what a token adds depends on the ones before it, such
    as whether it begins with a space. A run of bytes is one piece, because its last byte decides
    whether the others are characters at all.

    Args:
        decode: Turns ids into stripped text.
        is_open: Tells whether the id after this one may still change the text: true of single bytes
            and of ids without text, which leave the bytes around them side by side.
    """

    def __init__(self, decode: Callable[[list[int]], str], is_open: Callable[[int], bool]) -> None:
        self._decode = decode
        self._is_open = is_open
        self._seen: list[int] = []
        self._shown = ""

    def add(self, token_id: int) -> str:
        """Take the next id and return the text that it completes, often none."""
        self._seen.append(token_id)
        return "" if self._is_open(token_id) else self.rest()

    def rest(self) -> str:
        """Return the text that is not shown yet, at the end of the answer."""
        text = self._decode(self._seen)
        assert text.startswith(self._shown), "text that was shown has changed"
        added, self._shown = text.removeprefix(self._shown), text
        return added


def stream_pieces(ids: Iterable[int], pieces: TextPieces) -> Iterator[str]:
    """Turn the ids of one answer into pieces of text; none is empty."""
    for token_id in ids:
        if text := pieces.add(token_id):
            yield text
    if text := pieces.rest():
        yield text
