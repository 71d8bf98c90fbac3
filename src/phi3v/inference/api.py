"""The OpenAI-compatible API: ``/v1/chat/completions``, ``/v1/models``, ``/health``."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from phi3v.inference.chat_request import ChatRequest, RequestError, read_messages
from phi3v.inference.faults import describe_fault
from phi3v.inference.replies import Reply
from phi3v.inference.sampling import RowSampling
from phi3v.inference.scheduling import Answer, BusyError, StoppedError
from phi3v.inference.service import Service, Wish
from phi3v.model.settings import GenerationSettings

logger = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True)
class ApiSettings:
    """Choices of whoever serves.

    Attributes:
        allow_urls: Fetch pictures and videos from web addresses.
        max_file_bytes: Largest file that is fetched.
        answers: How answers are chosen where the request does not tell.
    """

    allow_urls: bool = False
    max_file_bytes: int = 64 << 20
    answers: GenerationSettings = field(default_factory=GenerationSettings)


class _AnswerStream(StreamingResponse):
    """A streamed answer whose generation stops with the response, however that ends."""

    def __init__(self, answer: Answer, content: AsyncIterator[str]) -> None:
        super().__init__(
            content,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def add_api(app: FastAPI, service: Service, settings: ApiSettings) -> None:
    """Add the routes of the API, and its form of errors, to an app."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.name, "requests": service.scheduler.counts()}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(name) for name in service.names]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in service.names:
            return _unknown_model(service, name)
        return JSONResponse(_describe(name))

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        service.scheduler.check_room()
        body = await _read_body(request)
        if body.model not in service.names:
            return _unknown_model(service, body.model)
        with service.scheduler.place():
            messages = await asyncio.to_thread(
                read_messages,
                body,
                allow_urls=settings.allow_urls,
                max_bytes=settings.max_file_bytes,
            )
            wish = _wish(body, service.names[body.model], settings.answers)
            answer, num_prompt_tokens = await service.ask(messages, wish)
        reply = Reply(body.model, num_prompt_tokens)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return _AnswerStream(answer, _events(answer, reply, with_usage))
        return await _answer_whole(request, answer, reply)

    app.include_router(router)
    _add_errors(app)


def _describe(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "phi3v"}


def _unknown_model(service: Service, name: str) -> JSONResponse:
    known = ", ".join(service.names)
    return _error(
        404, f"there is no model {name!r}; this server has {known}", "model_not_found", "model"
    )


def _wish(body: ChatRequest, adapted: bool, own: GenerationSettings) -> Wish:
    def choose(asked: float | None, default: float) -> float:
        return default if asked is None else asked

    sampling = RowSampling(
        choose(body.temperature, own.temperature),
        choose(body.top_p, own.top_p),
        choose(body.repetition_penalty, own.repetition_penalty),
        body.seed,
    )
    return Wish(body.answer_length(own.max_new_tokens), sampling, body.stop_texts(), adapted)


async def _read_body(request: Request) -> ChatRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Web pages of others can send plain text to this machine, but not JSON.
    if kind != "application/json":
        raise HTTPException(415, "send Content-Type: application/json")
    content = await request.body()
    try:
        body = await asyncio.to_thread(ChatRequest.model_validate_json, content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        where = f"{place}: " if place else ""
        raise RequestError(f"{where}{first['msg']}", place or None) from None
    body.check()
    return body


async def _answer_whole(request: Request, answer: Answer, reply: Reply) -> Response:
    """Collect the answer; give up when the client leaves."""
    collected = asyncio.ensure_future(_collect(answer, reply))
    left = asyncio.ensure_future(_wait_for_leaving(request))
    try:
        await asyncio.wait({collected, left}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            raise ClientDisconnect
        return JSONResponse(collected.result())
    finally:
        answer.cancel()
        collected.cancel()
        left.cancel()


async def _collect(answer: Answer, reply: Reply) -> dict[str, Any]:
    text, piece = "", None
    async for piece in answer:
        text += piece.text
    assert piece is not None, "an answer ends with a piece"
    return reply.whole(text, piece.finish_reason, piece.num_tokens)


async def _wait_for_leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(answer: Answer, reply: Reply, with_usage: bool) -> AsyncIterator[str]:
    yield _event(reply.chunk({"role": "assistant", "content": ""}))
    try:
        async for piece in answer:
            if piece.text:
                yield _event(reply.chunk({"content": piece.text}))
            if piece.finish_reason is not None:
                yield _event(reply.chunk({}, piece.finish_reason))
                if with_usage:
                    yield _event(reply.usage_chunk(piece.num_tokens))
    except Exception as error:  # the status is sent; what is left is to say it in the stream
        yield _event(json.loads(bytes(_explain(error).body)))
        return
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _explain(error: Exception) -> JSONResponse:
    """Turn what can go wrong into a response in the form of the OpenAI API."""
    fault = describe_fault(error)
    return _error(fault.status, fault.message, fault.code, fault.param)


def _error(status: int, message: str, code: str, param: str | None = None) -> JSONResponse:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
    return JSONResponse(content, status, headers)


def _add_errors(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        return _explain(error)

    for kind in (
        *(ValueError, BusyError, StoppedError, HTTPException),
        *(ClientDisconnect, torch.OutOfMemoryError, Exception),
    ):
        app.add_exception_handler(kind, handle)
