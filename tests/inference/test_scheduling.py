import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.inference.turns import Counter

from phi3v.inference import scheduling
from phi3v.inference.answering import AnswerPiece, AnswerRequest, Row
from phi3v.inference.prefixes import Prefix, PrefixCache, Regime
from phi3v.inference.prompts import PreparedPrompt
from phi3v.inference.scheduling import AnswerError, BusyError, Limits, Scheduler, StoppedError
from phi3v.model.processing import Phi3VProcessor


class Recorder:
    """Stands for the generation: notes its batches, and answers with their lengths."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.errors: list[Exception] = []

    def __call__(
        self, model: Any, processor: Any, rows: Sequence[Row], prefixes: PrefixCache, **_: Any
    ) -> None:
        self.batches.append([len(row.request.prompt.input_ids) for row in rows])
        assert self.free.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        for row in rows:
            if not row.done:
                row.done = True
                row._deliver(AnswerPiece(str(len(row.request.prompt.input_ids)), 1, "stop"))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    one = Recorder()
    monkeypatch.setattr(scheduling, "answer_rows", one)
    return one


def request(length: int, **options: Any) -> AnswerRequest:
    return AnswerRequest(PreparedPrompt([1] * length), 10, **options)


def answer_all(
    recorder: Recorder,
    processor: Phi3VProcessor,
    requests: Sequence[AnswerRequest],
    *,
    model: Any = None,
    **limits: Any,
) -> list[str | Exception]:
    """Submit one request that blocks the line, then all others, and collect their answers."""
    scheduler = Scheduler(model, processor, Limits(**{"batch_window": 0.0} | limits))

    async def collect(answer: Any) -> str:
        return "".join([piece.text async for piece in answer])

    async def run() -> list[Any]:
        answers = [scheduler.submit(requests[0])]
        while not recorder.batches:
            await asyncio.sleep(0.005)
        answers += [scheduler.submit(one) for one in requests[1:]]
        recorder.free.set()
        return await asyncio.gather(*map(collect, answers), return_exceptions=True)

    found = asyncio.run(run())
    scheduler.close()
    assert scheduler.join(60)
    return found


def test_those_that_wait_share_a_batch_in_their_order(
    recorder: Recorder, processor: Phi3VProcessor
) -> None:
    requests = [request(length) for length in (1, 2, 3, 4, 5, 6)]
    found = answer_all(recorder, processor, requests, max_batch_size=3)
    assert found == ["1", "2", "3", "4", "5", "6"]
    assert recorder.batches == [[1], [2, 3, 4], [5, 6]]


def test_the_first_in_line_is_never_passed_over(
    recorder: Recorder, processor: Phi3VProcessor
) -> None:
    requests = [request(length) for length in (1, 2, 90, 3, 4)]
    answer_all(recorder, processor, requests, max_batch_tokens=50)
    # Room for three of 4 + 10 tokens; the long one waits once, then goes before all others.
    assert recorder.batches == [[1], [2, 3, 4], [90]]


def test_adapted_and_base_answers_go_in_turns(
    recorder: Recorder, processor: Phi3VProcessor
) -> None:
    switched: list[str] = []

    class Switch:
        def disable_adapter(self) -> Any:
            switched.append("off")
            return torch.no_grad()

    requests = [request(1), request(2, adapted=False), request(3), request(4, adapted=False)]
    answer_all(recorder, processor, requests, model=Switch())
    assert recorder.batches == [[1], [2, 4], [3]]
    assert switched == ["off"]


def test_a_batch_out_of_memory_is_answered_one_by_one(
    recorder: Recorder, processor: Phi3VProcessor
) -> None:
    requests = [request(length) for length in (1, 2, 3)]
    recorder.errors = [torch.OutOfMemoryError("first, alone")]
    found = answer_all(recorder, processor, requests)
    assert isinstance(found[0], torch.OutOfMemoryError)
    assert found[1:] == ["2", "3"]
    recorder.batches.clear()
    recorder.free.clear()
    scheduler = Scheduler(None, processor, Limits(batch_window=0.3))

    async def run() -> list[str]:
        recorder.errors = [torch.OutOfMemoryError("together")]
        recorder.free.set()
        answers = [scheduler.submit(one) for one in requests]
        return ["".join([piece.text async for piece in answer]) for answer in answers]

    assert asyncio.run(run()) == ["1", "2", "3"]
    assert recorder.batches == [[1, 2, 3], [1], [2], [3]]
    scheduler.close()


def test_what_is_kept_makes_room_for_a_batch_out_of_memory(
    recorder: Recorder, processor: Phi3VProcessor
) -> None:
    scheduler = Scheduler(None, processor, Limits(batch_window=0.0))
    scheduler._prefixes.keep(Prefix(np.zeros((1, 2), np.int64), [], {}, Regime(True, False)))
    recorder.errors = [torch.OutOfMemoryError("much is kept")]
    recorder.free.set()

    async def run() -> str:
        return "".join([piece.text async for piece in scheduler.submit(request(3))])

    assert asyncio.run(run()) == "3"
    assert recorder.batches == [[3], [3]]
    assert scheduler._prefixes.num_tokens == 0
    scheduler.close()


@pytest.mark.parametrize(("max_kept_tokens", "fed"), [(1000, 4), (0, 9)])
def test_the_next_request_begins_where_the_last_one_ended(
    model: Any, processor: Phi3VProcessor, max_kept_tokens: int, fed: int
) -> None:
    limits = Limits(batch_window=0.0, max_kept_tokens=max_kept_tokens)
    scheduler, counter = Scheduler(model, processor, limits), Counter(model)

    async def run(*ids: int) -> None:
        one = AnswerRequest(PreparedPrompt(list(ids)), 1)
        assert [piece async for piece in scheduler.submit(one)]

    asyncio.run(run(1, 5, 6, 7, 8, 9))
    counter.take()
    asyncio.run(run(1, 5, 6, 7, 8, 20, 21, 22, 23, 24))
    # All but the last token; five of them are kept.
    assert counter.take()[0] == [fed, 1]
    scheduler.close()
    assert scheduler.join(60)


def test_a_failure_ends_its_own_batch_only(
    recorder: Recorder, processor: Phi3VProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.errors = [ValueError("secret of the inside")]
    found = answer_all(recorder, processor, [request(1), request(2)])
    assert isinstance(found[0], AnswerError) and "secret" not in str(found[0])
    assert found[1] == "2"
    assert "secret of the inside" in caplog.text


def test_a_full_and_a_closed_line_are_told_apart(processor: Phi3VProcessor) -> None:
    scheduler = Scheduler(None, processor, Limits(max_waiting=1))
    with scheduler.place(), pytest.raises(BusyError, match="1 requests wait already"):
        scheduler.check_room()
    scheduler.check_room()
    scheduler.close()
    with pytest.raises(StoppedError):
        scheduler.check_room()
    assert scheduler.join(60)
