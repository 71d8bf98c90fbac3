"""What stands in front of page and API: size and time limits, the key, and closed doors.

The limits hold for every route, also for those of Gradio, and before any of them reads a byte.
"""

import asyncio
import json
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Doors of Gradio that would fetch addresses for strangers, run code, or are of no use here.
_CLOSED = (
    *("/gradio_api/file=http:", "/gradio_api/file=https:", "/gradio_api/proxy="),
    *("/gradio_api/deep_link", "/gradio_api/vibe-", "/gradio_api/undo-vibe-"),
    *("/gradio_api/process_recording", "/gradio_api/run-history", "/gradio_api/runs"),
    *("/gradio_api/component_server", "/gradio_api/dev/", "/gradio_api/stream/", "/monitoring"),
)


# A page of this server talks to this server alone: words of a model cannot call on others.
_POLICY = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' "
    "data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


# What is still read of a request that is refused: bodies of the largest size, and a pause in them.
_DISCARDED_BODIES = 4
_IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Bounds:
    """Limits of requests.

    Attributes:
        max_body_bytes: Largest body.
        max_open_bytes: Most bytes of all bodies that are being read.
        body_seconds: Longest time that a body may take to arrive.
    """

    max_body_bytes: int = 64 << 20
    max_open_bytes: int = 512 << 20
    body_seconds: float = 60.0


@dataclass(frozen=True)
class Refusal:
    """An answer of the guard itself.

    Attributes:
        status: HTTP status.
        message: What is wrong.
        code: Name of the fault for programs.
    """

    status: int
    message: str
    code: str

    def body(self) -> dict[str, Any]:
        """Write the refusal in the form of the OpenAI API."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the status."""
        headers = {"content-type": "application/json"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (429, 503):
            headers["retry-after"] = "2"
        if self.status in (408, 413):
            headers["connection"] = "close"
        return headers


class Guard:
    """ASGI middleware that refuses before it reads.

    Args:
        app: What stands behind.
        bounds: Limits of requests.
        api_key: Key of the API; None lets everybody in.
    """

    def __init__(
        self,
        app: ASGIApp,
        bounds: Bounds,
        api_key: str | None = None,
    ) -> None:
        self._app = app
        self._bounds = bounds
        self._api_key = api_key
        self._open_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value for key, value in scope["headers"]}
        if refusal := self._look_at(scope, headers):
            await self._refuse(send, refusal, receive)
            return
        watch = _Watch(self, receive, send)
        try:
            await self._app(scope, watch.receive, watch.send)
        except Exception:
            if watch.refusal is None:
                raise
        finally:
            self._open_bytes -= watch.counted
        if watch.refusal is not None and not watch.started:
            await self._refuse(send, watch.refusal, None if watch.complete else receive)

    async def _refuse(self, send: Send, refusal: Refusal, receive: Receive | None) -> None:
        logging.getLogger(__name__).info("%d %s", refusal.status, refusal.message)
        body = json.dumps(refusal.body()).encode()
        headers = _encode(refusal.headers() | {"content-length": str(len(body))})
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if receive is not None:
            await self._discard(receive)
        await send({"type": "http.response.body", "body": b""})

    async def _discard(self, receive: Receive) -> None:
        """Take what a client still sends, within bounds.

        A connection that is closed over unread bytes is reset, and the client loses the answer.
        """
        left = _DISCARDED_BODIES * self._bounds.max_body_bytes
        until = asyncio.get_running_loop().time() + self._bounds.body_seconds
        more = True
        while more and left > 0 and asyncio.get_running_loop().time() < until:
            try:
                message = await asyncio.wait_for(receive(), _IDLE_SECONDS)
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def _look_at(self, scope: Scope, headers: dict[str, bytes]) -> Refusal | None:
        path = scope["path"]
        if any(path.startswith(door) for door in _CLOSED):
            return Refusal(403, "this is not served", "forbidden")
        if path.startswith("/v1/") and not self._has_key(headers):
            return Refusal(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", "no_key"
            )
        length = headers.get("content-length", b"0")
        if length.isdigit() and int(length) > self._bounds.max_body_bytes:
            return self.too_large()
        return None

    def _has_key(self, headers: dict[str, bytes]) -> bool:
        if self._api_key is None:
            return True
        given = headers.get("authorization", b"")
        return secrets.compare_digest(given, f"Bearer {self._api_key}".encode())

    def too_large(self) -> Refusal:
        """Refuse a body for its size."""
        limit = self._bounds.max_body_bytes >> 20
        return Refusal(413, f"the request is larger than {limit} MiB; send less", "too_large")

    def count(self, num_bytes: int, counted: int) -> Refusal | None:
        """Count bytes that arrived for a request, which has `counted` with them."""
        self._open_bytes += num_bytes
        if counted > self._bounds.max_body_bytes:
            return self.too_large()
        if self._open_bytes > self._bounds.max_open_bytes:
            return Refusal(503, "too many uploads at once; try again soon", "overloaded")
        return None

    @property
    def body_seconds(self) -> float:
        """Longest time that a body may take to arrive."""
        return self._bounds.body_seconds


class _Watch:
    """Counts and times the body of one request."""

    def __init__(self, guard: Guard, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._receive = receive
        self._send = send
        self._until = asyncio.get_running_loop().time() + guard.body_seconds
        self.complete = False
        self.counted = 0
        self.refusal: Refusal | None = None
        self.started = False

    async def receive(self) -> Message:
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        if self.complete:
            return await self._receive()
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            seconds = self._guard.body_seconds
            self.refusal = Refusal(408, f"the request took over {seconds:g} s", "timeout")
            return {"type": "http.disconnect"}
        self.counted += len(message.get("body", b""))
        self.refusal = self._guard.count(len(message.get("body", b"")), self.counted)
        self.complete = not message.get("more_body", False)
        return message if self.refusal is None else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.refusal is None or self.started:
            self.started = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_encode(_POLICY)]
            await self._send(message)


def _encode(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value.encode()) for key, value in headers.items()]
