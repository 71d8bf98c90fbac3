import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from phi3v.inference.answers import stream_answer
from phi3v.inference.streaming import TextPieces, stream_ids, stream_pieces
from phi3v.model.answers import Conversation, decode_answer
from phi3v.model.processing import Phi3VProcessor


class Counting:
    """Stands for a model: makes the ids 1, 2, 3, ... until it is stopped."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made = 0
        self.fail_at = fail_at

    def generate(self, streamer: Any, stopping_criteria: Any) -> None:
        streamer.put(torch.tensor([[7, 7]]))
        while not stopping_criteria(torch.zeros(1, 1), None).all():
            self.made += 1
            if self.made == self.fail_at:
                raise RuntimeError("the kernel failed")
            streamer.put(torch.tensor([self.made]))
            time.sleep(0.001)


def test_the_prompt_is_not_part_of_the_stream() -> None:
    ids = stream_ids(Counting().generate, {})
    assert [next(ids), next(ids)] == [1, 2]
    ids.close()


def test_closing_the_stream_ends_the_thread() -> None:
    before = threading.active_count()
    ids = stream_ids(Counting().generate, {})
    next(ids)
    assert threading.active_count() == before + 1
    ids.close()
    assert threading.active_count() == before


def test_an_error_of_the_thread_is_raised_where_the_answer_is_read() -> None:
    ids = stream_ids(Counting(fail_at=3).generate, {})
    assert [next(ids), next(ids)] == [1, 2]
    with pytest.raises(RuntimeError, match="the kernel failed"):
        next(ids)


class Reciting:
    """Stands for a model: writes the given ids."""

    config = SimpleNamespace(max_position_embeddings=1000)
    device = torch.device("cpu")

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def generate(self, streamer: Any, **inputs: Any) -> None:
        streamer.put(inputs["input_ids"])
        for token_id in self.ids:
            streamer.put(torch.tensor([token_id]))


def recite(processor: Phi3VProcessor, ids: list[int]) -> list[str]:
    question = Conversation([{"role": "user", "content": "Go"}])
    return list(stream_answer(Reciting(ids), processor, question))


@pytest.mark.parametrize(
    "text", ["Two words.\n next line\n\n  indented", "naïve 日本語 😀 end", " a "]
)
def test_pieces_join_to_the_answer(processor: Phi3VProcessor, text: str) -> None:
    pieces = recite(processor, processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(pieces) == text.strip()
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(10))
def test_pieces_of_any_ids_join_to_their_text(processor: Phi3VProcessor, seed: int) -> None:
    # Bytes that form no character, special tokens and ids without a token included.
    ids = np.random.default_rng(seed).integers(0, len(processor.tokenizer) + 9, 80).tolist()
    assert "".join(recite(processor, ids)) == decode_answer(processor, ids)


def test_pieces_come_while_the_answer_is_made() -> None:
    read = []
    ids = (read.append(number) or number for number in range(1, 4))
    pieces = stream_pieces(
        ids, TextPieces(lambda seen: " ".join(map(str, seen)), lambda token_id: False)
    )
    assert (next(pieces), read) == ("1", [1])
    assert list(pieces) == [" 2", " 3"]


def test_bytes_wait_until_their_run_is_over() -> None:
    pieces = stream_pieces(
        [1, 2, 3], TextPieces(lambda seen: "abc"[: len(seen)], lambda token_id: token_id < 3)
    )
    assert list(pieces) == ["abc"]
