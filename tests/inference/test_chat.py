from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.inference.turns import Counter

from phi3v.inference.chat import ChatSession, GenerationSettings
from phi3v.model.answers import Conversation, answer_batch, render_prompt
from phi3v.model.processing import Phi3VProcessor

SHORT = {"max_new_tokens": 12}


def say(session: ChatSession, text: str, *args: Any, **settings: Any) -> str:
    return "".join(session.ask(text, *args, **(SHORT | settings)))


def last_prompt(session: ChatSession) -> str:
    return render_prompt(session.processor, session.conversation("next")).text


@pytest.mark.parametrize("text", ["What is this?", "Hello", "Name it.", "Why?", "1, 2, 3"])
def test_pieces_join_to_the_answer_of_a_batch_of_one(session: ChatSession, text: str) -> None:
    settings = GenerationSettings(max_new_tokens=60)
    conversations = [session.conversation(text)]
    expected = answer_batch(session.model, session.processor, conversations, settings)
    assert [say(session, text, max_new_tokens=60)] == expected


def test_two_images_in_one_question(session: ChatSession, media_folder: Path) -> None:
    say(session, "What changed?", [media_folder / "wide.png", media_folder / "tall.png"])
    assert last_prompt(session).startswith(
        "<|user|>\n<|image_1|>\n<|image_2|>\nWhat changed?<|end|>\n<|assistant|>\n"
    )


def test_image_in_second_turn(session: ChatSession, media_folder: Path) -> None:
    first = say(session, "Hello", [media_folder / "wide.png"])
    second = say(session, "And this?", [Image.new("RGB", (40, 40))])
    assert last_prompt(session) == (
        f"<|user|>\n<|image_1|>\nHello<|end|>\n<|assistant|>\n{first}<|end|>\n"
        f"<|user|>\n<|image_2|>\nAnd this?<|end|>\n<|assistant|>\n{second}<|end|>\n"
        "<|user|>\nnext<|end|>\n<|assistant|>\n"
    )


def test_the_picture_changes_the_answer(session: ChatSession, media_folder: Path) -> None:
    wide = say(session, "What?", [media_folder / "wide.png"])
    session.clear()
    assert say(session, "What?", [media_folder / "tall.png"]) != wide


def test_a_video_becomes_the_images_of_its_frames(
    model: Any, processor: Phi3VProcessor, media_folder: Path
) -> None:
    session = ChatSession(model, processor, max_num_frames=2)
    say(session, "What happens?", [], [media_folder / "clip.mkv"])
    assert "<|user|>\n<|image_1|>\n<|image_2|>\nWhat happens?" in last_prompt(session)


def test_tags_show_where_a_picture_belongs(session: ChatSession, media_folder: Path) -> None:
    say(session, "Is <image> wide?", [media_folder / "wide.png"])
    assert "Is <|image_1|> wide?" in last_prompt(session)


def test_the_system_turn_stays_after_clear(model: Any, processor: Phi3VProcessor) -> None:
    session = ChatSession(model, processor, system="Be brief.")
    say(session, "Hello")
    session.clear()
    assert last_prompt(session).startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nnext<|end|>")


def test_a_tag_in_the_system_text_is_refused(model: Any, processor: Phi3VProcessor) -> None:
    with pytest.raises(ValueError, match="system text holds the tag <image>"):
        ChatSession(model, processor, system="<image> is it")


def test_a_turn_that_fails_leaves_no_trace(session: ChatSession, media_folder: Path) -> None:
    say(session, "Hello")
    before = last_prompt(session)
    with pytest.raises(FileNotFoundError, match="none.png"):
        session.ask("What?", [media_folder / "none.png"])
    assert last_prompt(session) == before


def test_a_stopped_answer_is_remembered_as_far_as_it_was_read(session: ChatSession) -> None:
    pieces = session.ask("Hello", **SHORT)
    heard = next(pieces)
    pieces.close()
    assert session.turns[-1].text == heard


def test_tags_in_an_answer_do_not_break_the_next_turn(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        said = iter(["see <|image_1|>", " and <image>"])
        patch.setattr("phi3v.inference.chat.stream_answer", lambda *args: (one for one in said))
        say(session, "Hello")
    assert "see image_1 and image<|end|>" in last_prompt(session)
    say(session, "Go on")


def test_a_prompt_that_is_too_long_names_length_and_limit(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.model.config, "max_position_embeddings", 50)
    with pytest.raises(ValueError, match=r"prompt has \d+ tokens, 93 of them.*at most 49"):
        session.ask("Hello", [Image.new("RGB", (40, 40))])


def test_an_answer_stops_where_the_model_can_read_no_further(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = render_prompt(session.processor, session.conversation("Hello")).num_tokens
    monkeypatch.setattr(session.model.config, "max_position_embeddings", length + 1)
    assert len(list(session.ask("Hello", max_new_tokens=100))) <= 1


@pytest.fixture
def conversations(session: ChatSession, media_folder: Path) -> list[Conversation]:
    wide, tall = (Image.open(media_folder / f"{name}.png") for name in ("wide", "tall"))
    return [
        Conversation([{"role": "user", "content": text}], pictures)
        for text, pictures in (
            ("Only words here, and rather more of them than elsewhere.", []),
            ("<|image_1|>\nWhat?", [wide]),
            ("<|image_1|>\n<|image_2|>\nWhich?", [tall, wide]),
        )
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"repetition_penalty": 1.3}, {"num_beams": 3}],
    ids=["greedy", "repetition penalty", "beams"],
)
def test_a_batch_gives_the_answers_of_its_rows_alone(
    model: Any, processor: Phi3VProcessor, conversations: list[Conversation], settings: dict
) -> None:
    chosen = GenerationSettings(**SHORT, **settings)
    alone = [answer_batch(model, processor, [one], chosen)[0] for one in conversations]
    assert answer_batch(model, processor, conversations, chosen) == alone
    assert len(set(alone)) == 3


def test_drawing_with_images_and_penalty_runs(
    model: Any, processor: Phi3VProcessor, conversations: list[Conversation]
) -> None:
    settings = GenerationSettings(20, temperature=1.5, top_p=0.95, repetition_penalty=1.2)
    assert len(answer_batch(model, processor, conversations, settings)) == 3


def test_image_tokens_are_never_drawn(
    model: Any, processor: Phi3VProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = model.lm_head.weight.new_zeros(model.config.vocab_size)
    bias[processor.image_token_id] = 1e4
    with_bias = model.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    conversation = Conversation([{"role": "user", "content": "Hello"}])
    try:
        assert len(answer_batch(model, processor, [conversation], GenerationSettings(5))) == 1
    finally:
        with_bias.remove()


def test_a_beam_search_comes_in_one_piece(session: ChatSession) -> None:
    assert len(list(session.ask("Hello", num_beams=2, **SHORT))) == 1


def test_a_conversation_must_end_with_a_question(model: Any, processor: Phi3VProcessor) -> None:
    answered = Conversation(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    with pytest.raises(ValueError, match="last message is the assistant's"):
        answer_batch(model, processor, [answered])


def test_a_turn_decodes_only_what_is_new(
    model: Any, processor: Phi3VProcessor, media_folder: Path
) -> None:
    session, counter = ChatSession(model, processor), Counter(model)
    first = say(session, "What?", [media_folder / "wide.png"])
    fed, crops = counter.take()
    prompt = render_prompt(processor, session.conversation("And now?"))
    assert crops > 0
    second = say(session, "And now?")
    again, crops = counter.take()
    # The prompt of the first turn is kept; its answer may be other tokens when it is read.
    assert crops == 0 and again[0] <= prompt.num_tokens - 1 - fed[0]
    fresh = ChatSession(model, processor)
    assert [say(fresh, "What?", [media_folder / "wide.png"]), say(fresh, "And now?")] == [
        first,
        second,
    ]
    session.clear()
    assert session.prefixes.num_tokens == 0


def test_a_static_cache_says_the_same(model: Any, processor: Phi3VProcessor) -> None:
    heard = []
    for static_cache in (False, True):
        session = ChatSession(model, processor)
        asked = ("Hello", "And then?")
        heard.append([say(session, text, static_cache=static_cache) for text in asked])
        conversations = [session.conversation(text) for text in asked]
        settings = GenerationSettings(**SHORT, static_cache=static_cache)
        heard[-1] += answer_batch(model, processor, conversations, settings)
    assert heard[0] == heard[1]
