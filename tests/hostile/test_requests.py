"""Requests of strangers with damaged bodies: read, or refused by what the API turns into 400."""

import base64
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from pydantic import ValidationError
from tests.data.clips import write_clip
from tests.hostile.mutations import damaged_bytes, damaged_json

from phi3v.inference.chat_request import ChatRequest, read_messages
from phi3v.inference.faults import describe_fault
from phi3v.inference.messages import MediaLimits, open_messages

LIMITS = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MEDIA = MediaLimits(max_uploads=4, max_image_pixels=100_000, max_num_frames=3)


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def body_of(picture: bytes, clip: bytes) -> bytes:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url("image/png", picture)}},
        {"type": "video_url", "video_url": {"url": data_url("video/x-matroska", clip)}},
        {"type": "text", "text": "What is shown?"},
    ]
    body = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
        ],
        **{"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"]},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }
    return json.dumps(body).encode()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mkv", num_frames=3, rate=1)
    picture = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(picture, "PNG")
    return picture.getvalue(), (folder / "clip.mkv").read_bytes()


def read(body: bytes) -> int:
    """Do what the API does before the model is asked; return the HTTP status."""
    try:
        request = ChatRequest.model_validate_json(body)
        request.check()
        messages = read_messages(request, allow_urls=False, max_bytes=1 << 20)
        open_messages(messages, MEDIA)
    except ValidationError:
        return 400
    except Exception as error:
        fault = describe_fault(error)
        assert fault.status == 400 and len(fault.message) < 2000, repr(error)
        return fault.status
    return 200


def test_a_sound_request_is_read(media: tuple[bytes, bytes]) -> None:
    assert read(body_of(*media)) == 200


def test_a_damaged_body_is_refused_or_read(media: tuple[bytes, bytes]) -> None:
    def send(body: bytes) -> None:
        read(body)

    LIMITS(given(damaged_json(body_of(*media)))(send))()


@pytest.mark.parametrize("damaged", ["picture", "clip"])
def test_damaged_uploads_are_refused_or_read(media: tuple[bytes, bytes], damaged: str) -> None:
    picture, clip = media

    def send(content: bytes) -> None:
        read(body_of(content, clip) if damaged == "picture" else body_of(picture, content))

    LIMITS(given(damaged_bytes(picture if damaged == "picture" else clip))(send))()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "data:,x",
            "data:image/png;base64,",
            "data:image/png;base64,%%%",
            "data:image/png;base64",
        ),
        *("file:///etc/passwd", "/etc/passwd", "../x.png", "http://127.0.0.1/x", "ftp://a/b", ""),
        *("javascript:alert(1)", "\x00", "data:image/png;base64," + "A" * 10_001),
    ],
)
def test_addresses_of_any_kind_are_refused(url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    assert read(json.dumps(body).encode()) == 400


def test_many_pixels_in_few_bytes_are_refused() -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    parts = [{"type": "image_url", "image_url": {"url": data_url("image/png", bomb.getvalue())}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    assert read(json.dumps(body).encode()) == 400


def test_more_uploads_than_are_taken_are_refused(media: tuple[bytes, bytes]) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url("image/png", media[0])}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part] * 5}]}
    assert read(json.dumps(body).encode()) == 400
