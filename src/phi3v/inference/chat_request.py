"""Requests of the OpenAI-compatible API: what is understood, what is refused, and why."""

import base64
import binascii
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phi3v.data.fetching import fetch, is_web_address
from phi3v.data.turns import MediaKind
from phi3v.inference.messages import Message, Upload

# Accepted and without meaning here: they are notes of the caller, not settings of the answer.
_NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}


class RequestError(ValueError):
    """A request that cannot be honoured.

    Attributes:
        param: The field at fault.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Address(_Strict):
    """Where a picture or video is: a data URL; a web address only where these are allowed."""

    url: str
    detail: str | None = None


class Part(_Strict):
    """A text, a picture or a video of a message."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Address | None = None
    video_url: Address | None = None


class ChatMessage(BaseModel):
    """One message; fields such as "refusal", which answers of other servers have, are let pass."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """Refuse what would be ignored.

        Raises:
            RequestError: Naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _NOTES or value is None:
                continue
            if name not in _NEUTRAL:
                raise RequestError(f"unknown parameter {name!r}", name)
            if value not in _NEUTRAL[name]:
                raise RequestError(f"{name} {value!r} is not supported; leave it out", name)
        if len(self.stop_texts()) > 16:
            raise RequestError("at most 16 stop texts are taken", "stop")

    def stop_texts(self) -> tuple[str, ...]:
        """Return the texts to stop at."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    def answer_length(self, default: int) -> int:
        """Return the most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens or default


def read_messages(request: ChatRequest, *, allow_urls: bool, max_bytes: int) -> list[Message]:
    """Decode the messages of a request.

    Args:
        request: The request.
        allow_urls: Fetch pictures and videos from web addresses.
        max_bytes: Largest file that is fetched.

    Raises:
        RequestError: A part is of a wrong form, or its address is refused.
    """
    messages = []
    for number, message in enumerate(request.messages):
        role = "system" if message.role == "developer" else message.role
        parts: list[str | Upload] = []
        content = message.content
        for place, part in enumerate(
            [Part(type="text", text=content)] if isinstance(content, str) else content
        ):
            where = f"messages[{number}].content[{place}]"
            if part.type == "text":
                if part.text is None:
                    raise RequestError(f"{where} has no text", where)
                parts.append(part.text)
                continue
            address = part.image_url if part.type == "image_url" else part.video_url
            if address is None:
                raise RequestError(f"{where} has no {part.type}", where)
            if role != "user":
                raise RequestError(f"{where}: pictures and videos belong in user messages", where)
            kind: MediaKind = "image" if part.type == "image_url" else "video"
            content_bytes = _read_address(address.url, where, allow_urls, max_bytes)
            parts.append(Upload(kind, where, content_bytes))
        messages.append(Message(role, tuple(parts)))
    return messages


def _read_address(url: str, where: str, allow_urls: bool, max_bytes: int) -> bytes:
    if url[:5].lower() == "data:":
        header, comma, data = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise RequestError(
                f"{where}: expected data:image/...;base64, and the base64 text of the file", where
            )
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{where}: the base64 text is damaged ({error})", where) from None
    if not is_web_address(url):
        raise RequestError(
            f"{where}: only data URLs are taken (data:image/png;base64,...), files of the server "
            "are not read",
            where,
        )
    if not allow_urls:
        raise RequestError(
            f"{where}: web addresses are not fetched by this server; send the file as a data URL",
            where,
        )
    try:
        return fetch(url, max_bytes)
    except ValueError as error:
        raise RequestError(f"{where}: {error}", where) from None
