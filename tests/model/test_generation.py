"""Generation on tiny models: batches, images, beams, samples, streams, stops, the rotary switch."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

from phi3v import Phi3VForCausalLM, Phi3VProcessor
from phi3v.model.generation import CACHE_ARGUMENT

Make = Callable[..., Phi3VForCausalLM]
# Nothing but the length stops a run.
FREE = {"do_sample": False, "eos_token_id": -1}
TEXTS = ["Hello there", "<|image_1|>\nWhat?", "<|image_1|><|image_2|>Which?"]


def ask(processor: Phi3VProcessor, texts: Any, images: Any = None, **kwargs: Any) -> Any:
    kwargs = {"padding": True, "return_tensors": "pt", "pixel_format": "compact"} | kwargs
    return processor(texts, images, **kwargs)


@pytest.fixture
def rows(pictures: list[Any]) -> list[list[Any]]:
    return [[], pictures[:1], pictures[1:]]


@pytest.fixture
def alone(make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]]) -> list[list[int]]:
    model, answers = make_model(), []
    for text, images in zip(TEXTS, rows, strict=True):
        inputs = ask(processor, text, images or None)
        ids = model.generate(**inputs, **FREE, max_new_tokens=24)
        answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("pixel_format", ["compact", "published"])
@pytest.mark.parametrize("cache", [None, "static", "none"])
def test_rows_with_different_numbers_of_images_answer_as_alone(
    make_model: Make,
    processor: Phi3VProcessor,
    rows: list[list[Any]],
    alone: list[list[int]],
    cache: str | None,
    pixel_format: str,
) -> None:
    # The second row starts below the switch of 64 and passes it on the way, the first stays below,
    # the third starts past it.
    inputs = ask(processor, TEXTS, rows, pixel_format=pixel_format)
    lengths = inputs["attention_mask"].sum(1)
    assert lengths[0] + 24 < 64 < lengths[1] + 24 and lengths[1] < 64 < lengths[2]
    settings: dict[str, Any] = {"use_cache": False} if cache == "none" else {}
    if cache == "static":
        settings = {"cache_implementation": "static"}
    ids = make_model().generate(**inputs, **FREE, max_new_tokens=24, **settings)
    assert ids[:, inputs["input_ids"].shape[1] :].tolist() == alone


def test_switch_encodes_everything_once(make_model: Make) -> None:
    model, fed = make_model(), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(torch.arange(3, 66)[None], **FREE, max_new_tokens=5)
    # Spec 4.3: a prompt of one less than the switch. What is cached is made again.
    assert fed == [63, 1, 64, 1, 1, 1]


def test_prompt_past_the_switch_is_encoded_once(make_model: Make) -> None:
    model, fed = make_model(), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(torch.arange(3, 68)[None], **FREE, max_new_tokens=3)
    assert fed == [65, 1, 1]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_tower_runs_once_per_answer(
    make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]], settings: dict[str, Any]
) -> None:
    # The second row passes the switch on the way.
    model, crops = make_model(), []
    model.model.vision_embed_tokens.img_processor.register_forward_pre_hook(
        lambda module, args: crops.append(args[0].shape[0])
    )
    inputs = ask(processor, TEXTS, rows)
    model.generate(**inputs, **FREE, max_new_tokens=24, **settings)
    # Three global crops, and the others once, whatever is repeated for beams.
    assert crops == [3 + inputs["pixel_values"].shape[0]]


# In front of, inside and behind a picture; between and inside pictures past the switch.
@pytest.mark.parametrize(("row", "num_cached"), [(1, 1), (1, 20), (1, 46), (2, 59), (2, 70)])
def test_a_cache_of_the_first_tokens_changes_nothing(
    make_model: Make,
    processor: Phi3VProcessor,
    rows: list[list[Any]],
    alone: list[list[int]],
    row: int,
    num_cached: int,
) -> None:
    model, inputs = make_model(), ask(processor, TEXTS[row], rows[row])
    ids = inputs["input_ids"]
    embeds = model.model.vision_embed_tokens(inputs["pixel_values"], inputs["image_sizes"])
    num_embeds = int((ids[:, :num_cached] == model.config.image_token_id).sum())
    cache = model(
        ids[:, :num_cached],
        image_embeds=embeds[:num_embeds] if num_embeds else None,
        document_lengths=torch.tensor([[ids.shape[1]]]),
        use_cache=True,
    ).past_key_values
    # On the way, the shorter prompt passes the switch, where all of it is encoded again.
    found = model.generate(**inputs, **FREE, max_new_tokens=24, **{CACHE_ARGUMENT: cache})
    assert found[0, ids.shape[1] :].tolist() == alone[row]


@pytest.mark.parametrize("pixel_format", ["compact", "published"])
def test_beams_of_a_batch_are_those_of_its_rows(
    make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]], pixel_format: str
) -> None:
    model = make_model()
    settings = FREE | {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    inputs = ask(processor, TEXTS, rows, pixel_format=pixel_format)
    found = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    for index, (text, images) in enumerate(zip(TEXTS, rows, strict=True)):
        row = ask(processor, text, images or None)
        expected = model.generate(**row, **settings)[:, row["input_ids"].shape[1] :]
        assert found[2 * index : 2 * index + 2].tolist() == expected.tolist()


def test_one_beam_is_greedy_search(make_model: Make, processor: Any, rows: Any) -> None:
    model, inputs = make_model(), ask(processor, TEXTS, rows)
    greedy = model.generate(**inputs, **FREE, max_new_tokens=8)
    assert (
        greedy.tolist() == model.generate(**inputs, **FREE, num_beams=1, max_new_tokens=8).tolist()
    )


def test_several_samples_of_every_row_see_their_own_images(
    make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]], alone: list[list[int]]
) -> None:
    inputs = ask(processor, TEXTS, rows)
    # So cold that sampling cannot but be greedy.
    settings = {"do_sample": True, "temperature": 1e-4, "eos_token_id": -1, "max_new_tokens": 24}
    ids = make_model().generate(**inputs, **settings, num_return_sequences=3)
    answers = ids[:, inputs["input_ids"].shape[1] :].tolist()
    assert answers == [answer for answer in alone for _ in range(3)]


def test_samples_of_a_hot_model_differ(make_model: Make, processor: Any, rows: Any) -> None:
    ids = make_model().generate(
        **ask(processor, TEXTS[1], rows[1]),
        do_sample=True,
        temperature=5.0,
        num_return_sequences=3,
        max_new_tokens=8,
    )
    assert len({tuple(row) for row in ids.tolist()}) == 3


@pytest.mark.parametrize("negative", [False, True], ids=["image_token_id", "published"])
def test_repetition_penalty_works_with_images(
    make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]], negative: bool
) -> None:
    model, inputs = make_model(), ask(processor, TEXTS[1], rows[1])
    ids = inputs["input_ids"]
    if negative:
        inputs["input_ids"] = ids.masked_fill(ids == model.config.image_token_id, -1)
    settings = FREE | {"repetition_penalty": 1e6, "max_new_tokens": 12}
    found = model.generate(**inputs, **settings)[0, ids.shape[1] :].tolist()
    # So strong that no token comes twice, nor one of the prompt.
    assert len(set(found) - set(ids[0].tolist())) == 12


def test_streamer_gives_the_answer_in_pieces(
    make_model: Make, processor: Phi3VProcessor, rows: list[list[Any]]
) -> None:
    model, inputs = make_model(), ask(processor, TEXTS[1], rows[1])
    tokenizer: Any = processor.tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    settings = {**inputs, **FREE, "max_new_tokens": 12}
    thread = Thread(target=model.generate, kwargs={**settings, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    ids = model.generate(**settings)[0, inputs["input_ids"].shape[1] :]
    assert text == tokenizer.decode(ids)


def test_streamer_may_show_the_prompt_of_published_ids(
    make_model: Make, processor: Any, rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, inputs = make_model(), ask(processor, TEXTS[1], rows[1])
    image = inputs["input_ids"] == model.config.image_token_id
    inputs["input_ids"] = inputs["input_ids"].masked_fill(image, -1)
    streamer = TextStreamer(processor.tokenizer)
    model.generate(**inputs, **FREE, max_new_tokens=2, streamer=streamer)
    assert "<|image|>" in capsys.readouterr().out


@pytest.mark.parametrize("stop", ["<|end|>", "<|endoftext|>"])
def test_answer_stops_at_both_ends_by_default(
    make_model: Make, processor: Phi3VProcessor, stop: str
) -> None:
    model: Any = make_model()
    stop_id = processor.tokenizer.convert_tokens_to_ids(stop)
    with torch.no_grad():
        # A head that always answers with the stop token.
        model.model.norm.weight.fill_(0)
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        model.lm_head.weight.fill_(0)
        model.lm_head.bias.fill_(0)
        model.lm_head.bias[stop_id] = 1
    ids = model.generate(torch.tensor([[1, 5]]), max_new_tokens=9)
    assert ids.tolist() == [[1, 5, stop_id]]
