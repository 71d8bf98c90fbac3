from typing import Any

import pytest
from PIL import Image

from phi3v.inference.answering import AnswerPiece, AnswerRequest, Row, StopTexts, answer_rows
from phi3v.inference.prompts import prepare_prompt
from phi3v.inference.sampling import RowSampling
from phi3v.model.answers import Conversation, answer_batch
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings

PICTURE = Image.effect_noise((200, 90), 60).convert("RGB")
ASKED = [
    Conversation([{"role": "user", "content": "<|image_1|>\nWhat?"}], [PICTURE]),
    Conversation([{"role": "user", "content": "Tell me a story about a cat and a dog"}]),
    Conversation([{"role": "user", "content": "Hm"}]),
]


def ask(
    model: Any, processor: Phi3VProcessor, conversation: Conversation, **options: Any
) -> tuple[Row, list[AnswerPiece]]:
    heard: list[Any] = []
    prompt = prepare_prompt(processor, conversation, 1000)
    return Row(AnswerRequest(prompt, **options), processor, heard.append), heard


def join(pieces: list[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_rows_of_a_batch_are_answered_as_alone(model: Any, processor: Phi3VProcessor) -> None:
    lengths = [12, 7, 20]
    asked = [
        ask(model, processor, one, max_new_tokens=length)
        for one, length in zip(ASKED, lengths, strict=True)
    ]
    answer_rows(model, processor, [row for row, _ in asked])
    for (_, heard), conversation, length in zip(asked, ASKED, lengths, strict=True):
        settings = GenerationSettings(max_new_tokens=length)
        assert join(heard) == answer_batch(model, processor, [conversation], settings)[0]
        assert heard[-1].finish_reason in ("stop", "length")
        assert heard[-1].num_tokens <= length


def test_an_answer_ends_before_a_stop_text(model: Any, processor: Phi3VProcessor) -> None:
    row, heard = ask(model, processor, ASKED[1], max_new_tokens=30)
    answer_rows(model, processor, [row])
    whole, stop = join(heard), join(heard)[8:12]
    row, heard = ask(model, processor, ASKED[1], max_new_tokens=30, stop=(stop,))
    answer_rows(model, processor, [row])
    assert join(heard) == whole[: whole.index(stop)]
    assert heard[-1].finish_reason == "stop"
    assert heard[-1].num_tokens < 30


def test_a_cancelled_row_stops_and_the_others_go_on(model: Any, processor: Phi3VProcessor) -> None:
    first, _ = ask(model, processor, ASKED[1], max_new_tokens=20)
    second, heard = ask(model, processor, ASKED[2], max_new_tokens=20)
    first._deliver = lambda piece: first.cancel()
    answer_rows(model, processor, [first, second])
    assert first.num_tokens < 20
    assert heard[-1].finish_reason is not None


def test_rows_that_draw_do_so_by_their_own_seed(model: Any, processor: Phi3VProcessor) -> None:
    sampling = RowSampling(temperature=1.0, seed=3)
    texts = []
    for others in ([], [ASKED[1]]):
        row, heard = ask(model, processor, ASKED[2], max_new_tokens=12, sampling=sampling)
        drawn = RowSampling(temperature=1.0, seed=9)
        more = [ask(model, processor, one, max_new_tokens=5, sampling=drawn)[0] for one in others]
        answer_rows(model, processor, [row, *more])
        texts.append(join(heard))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["Hello ", "wor", "ld"], ["world"], "Hello "),
        (["ab", "ab", "c!"], ["abc"], "ab"),
        (["one two"], ["two", "one"], ""),
        (["a", "b"], ["bc"], "ab"),
        (["a", "b"], [""], "ab"),
    ],
)
def test_stop_texts_are_found_across_pieces(
    pieces: list[str], stop: list[str], expected: str
) -> None:
    texts = StopTexts(stop)
    kept = ""
    for piece in pieces:
        kept += texts.add(piece)
        if texts.found:
            break
    assert kept + texts.rest() == expected
