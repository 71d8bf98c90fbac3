import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from tests.data.clips import write_clip
from tests.inference.serving import get, make_endless, post, run_api, wait_until

from phi3v.inference.scheduling import Limits
from phi3v.inference.service import Service
from phi3v.model.answers import Conversation, answer_batch
from phi3v.model.loading import load_model
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings

PICTURE = Image.effect_noise((200, 90), 60).convert("RGB")


def data_url(content: Image.Image | bytes, kind: str = "image/png") -> str:
    if isinstance(content, Image.Image):
        file = io.BytesIO()
        content.save(file, "PNG")
        content = file.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_part(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> Any:
    return {"type": "text", "text": text}


def user(*parts: Any) -> Any:
    return {"role": "user", "content": parts[0] if len(parts) == 1 else list(parts)}


@pytest.fixture(scope="module")
def service(model: Any, processor: Phi3VProcessor) -> Service:
    return Service(model, processor, "tiny", limits=Limits(max_waiting=100))


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with run_api(service) as address:
        yield address


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, *messages: Any, **options: Any) -> Any:
    options = {"model": "tiny", "max_tokens": 8} | options
    return client.chat.completions.create(messages=list(messages), **options)


def test_an_answer_is_that_of_the_model(
    client: openai.OpenAI, model: Any, processor: Phi3VProcessor
) -> None:
    content = "<|image_1|>\nWhat is it?"
    asked = Conversation(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        [PICTURE],
    )
    expected = answer_batch(model, processor, [asked], GenerationSettings(max_new_tokens=8))
    reply = complete(
        client,
        {"role": "system", "content": "Be brief."},
        user(picture_part(data_url(PICTURE)), text_part("What is it?")),
    )
    assert reply.choices[0].message.content == expected[0]
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 8
    text = processor.apply_chat_template(asked.messages, add_generation_prompt=True)
    ids = processor(text, [PICTURE])["input_ids"][0]
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.total_tokens == len(ids) + 8


def test_a_streamed_answer_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = complete(client, user("Tell me"), max_tokens=20).choices[0].message.content
    stream = complete(
        client, user("Tell me"), max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told) == whole
    assert sum(bool(text) for text in told) > 3
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-2].choices[0].finish_reason == "length"


def test_pictures_and_a_video_in_several_turns(client: openai.OpenAI, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", num_frames=25, rate=10, codec="mpeg4", pixels="yuv420p")
    video = data_url((tmp_path / "clip.mp4").read_bytes(), "video/mp4")
    first = user(picture_part(data_url(PICTURE)), text_part("One?"))
    second = user({"type": "video_url", "video_url": {"url": video}}, text_part("And this?"))
    answer = {"role": "assistant", "content": "one <|image_7|>"}
    reply = complete(client, first, answer, second)
    text_only = complete(client, user("One?"), answer, user("And this?"))
    assert reply.usage.prompt_tokens > text_only.usage.prompt_tokens + 4 * 20


def test_stop_text_and_seed(client: openai.OpenAI) -> None:
    whole = complete(client, user("Tell me"), max_tokens=20).choices[0].message.content
    reply = complete(client, user("Tell me"), max_tokens=20, stop=[whole[5:8]])
    assert reply.choices[0].message.content == whole[: whole.index(whole[5:8])]
    assert reply.choices[0].finish_reason == "stop"
    drawn = [
        complete(client, user("Tell me"), temperature=1.5, seed=seed, max_completion_tokens=12)
        for seed in (1, 1, 2)
    ]
    texts = [reply.choices[0].message.content for reply in drawn]
    assert texts[0] == texts[1] != texts[2]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.models.retrieve("other")


def test_health_counts_requests(url: str) -> None:
    health = get(f"{url}/health").json()
    assert health["status"] == "ok"
    assert set(health["requests"]) == {"running", "waiting", "opening"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2}, "n 2 is not supported"),
        ({"logprobs": True}, "logprobs True is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty 0.5 is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"extra_body": {"beams": 3}}, "unknown parameter 'beams'"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    client: openai.OpenAI, options: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        complete(client, user("Hm"), **options)


def test_neutral_settings_are_let_pass(client: openai.OpenAI) -> None:
    complete(client, user("Hm"), n=1, presence_penalty=0, logprobs=False, user="me", top_p=0.9)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/etc/passwd", "files of the server are not read"),
        ("file:///etc/passwd", "files of the server are not read"),
        ("http://127.0.0.1/a.png", "web addresses are not fetched"),
        ("data:image/png;base64,####", "the base64 text is damaged"),
        ("data:image/png,abc", "expected data:image"),
        (data_url(b"no picture"), "not a picture"),
        (data_url(b""), "is empty"),
    ],
)
def test_what_is_no_picture_gets_a_message(
    client: openai.OpenAI, address: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        complete(client, user(picture_part(address), text_part("What?")))
    assert "Traceback" not in str(caught.value)


def test_a_damaged_video_gets_a_message(client: openai.OpenAI) -> None:
    part = {"type": "video_url", "video_url": {"url": data_url(b"no video", "video/mp4")}}
    with pytest.raises(openai.BadRequestError, match="not a readable video"):
        complete(client, user(part, text_part("What?")))


def test_a_picture_of_a_hundred_megapixels_is_refused_by_its_header(
    client: openai.OpenAI,
) -> None:
    file = io.BytesIO()
    Image.new("1", (12500, 8000)).save(file, "PNG")
    with pytest.raises(openai.BadRequestError, match="more than 50000000 pixels"):
        complete(client, user(picture_part(data_url(file.getvalue())), text_part("What?")))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages"),
        ([{"role": "assistant", "content": "Hm"}], "last message must be the user's"),
        ([user("a"), {"role": "system", "content": "b"}, user("c")], "at the beginning only"),
        ([user("Is <|image_1|> a tag?")], "reserved for pictures"),
        ([{"role": "tool", "content": "a"}], "role"),
        ([user("word " * 140000)], "the conversation has"),
    ],
)
def test_conversations_that_cannot_be_answered_get_a_message(
    client: openai.OpenAI, messages: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        complete(client, *messages)


def test_errors_have_the_form_of_the_api(url: str) -> None:
    for response, status in (
        (post(f"{url}/v1/chat/completions", json={"model": "tiny"}), 400),
        (post(f"{url}/v1/chat/completions", content="{}"), 415),
        (get(f"{url}/v1/nothing"), 404),
        (get(f"{url}/v1/chat/completions"), 405),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_fifty_clients_at_once_get_their_own_answers(
    client: openai.OpenAI, model: Any, processor: Phi3VProcessor
) -> None:
    questions = [f"Question {number}" for number in range(50)]
    asked = [Conversation([{"role": "user", "content": question}]) for question in questions]
    expected = answer_batch(model, processor, asked, GenerationSettings(max_new_tokens=8))
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda question: complete(client, user(question)), questions))
    assert [reply.choices[0].message.content for reply in replies] == expected


@pytest.mark.parametrize("stream", [True, False])
def test_generation_stops_when_the_client_leaves(
    tiny_folder: Path, processor: Phi3VProcessor, stream: bool
) -> None:
    service = Service(make_endless(load_model(tiny_folder)), processor, "tiny")
    body = {"model": "tiny", "messages": [user("Hm")], "max_tokens": 50000, "stream": stream}
    with run_api(service) as url, httpx.Client() as http:
        request = ("POST", f"{url}/v1/chat/completions")
        with pytest.raises(httpx.ReadTimeout):
            with http.stream(*request, json=body, timeout=2) as reply:
                pieces = reply.iter_raw()
                next(pieces)
                wait_until(lambda: service.scheduler.counts()["running"] == 1)
                raise httpx.ReadTimeout("enough of the stream")
        wait_until(lambda: service.scheduler.counts()["running"] == 0)


def test_a_full_line_is_told_with_a_time_to_retry(
    tiny_folder: Path, processor: Phi3VProcessor
) -> None:
    limits = Limits(max_batch_size=1, max_waiting=2)
    model = make_endless(load_model(tiny_folder))
    service = Service(model, processor, "tiny", limits=limits)
    body: dict[str, Any] = {"model": "tiny", "messages": [user("Hm")], "max_tokens": 30000}
    with run_api(service) as url, ThreadPoolExecutor(3) as pool:
        address = f"{url}/v1/chat/completions"
        waiting = []
        for number in range(3):
            waiting.append(pool.submit(post, address, json=body))
            wait_until(lambda number=number: sum(service.scheduler.counts().values()) > number)
        wait_until(lambda: service.scheduler.counts()["waiting"] == 2)
        refused = post(address, json=body)
        service.scheduler.close()
        statuses = {one.result().status_code for one in waiting}
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert statuses == {503}, "answers in work end when the server stops"


def test_the_base_model_is_named_beside_its_adapter(
    adapter_folder: Path, tiny_folder: Path, processor: Phi3VProcessor
) -> None:
    service = Service(load_model(adapter_folder), processor, "run_7", can_compare=True)
    question = Conversation([{"role": "user", "content": "Tell me"}])
    settings = GenerationSettings(max_new_tokens=8)
    expected = {
        name: answer_batch(load_model(folder), processor, [question], settings)[0]
        for name, folder in (("run_7", adapter_folder), ("run_7:base", tiny_folder))
    }
    with run_api(service) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["run_7", "run_7:base"]
        with ThreadPoolExecutor(8) as pool:
            names = ["run_7", "run_7:base"] * 4
            replies = pool.map(lambda name: complete(client, user("Tell me"), model=name), names)
            for name, reply in zip(names, replies, strict=True):
                assert reply.choices[0].message.content == expected[name]
    assert expected["run_7"] != expected["run_7:base"]
