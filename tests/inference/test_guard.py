import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.inference.serving import get, post, run_api, run_app, wait_until

from phi3v.inference import server
from phi3v.inference.guard import Bounds
from phi3v.inference.service import Service
from phi3v.model.processing import Phi3VProcessor

MIB = 1 << 20
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hm"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def url(model: Any, processor: Phi3VProcessor) -> Iterator[str]:
    bounds = Bounds(max_body_bytes=MIB, max_open_bytes=3 * MIB, body_seconds=0.5)
    with run_api(Service(model, processor, "tiny"), bounds=bounds, api_key="secret") as address:
        yield address


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=25)


def head(length: str) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: application/json\r\n{length}\r\n\r\n"
    ).encode()


def test_two_gigabytes_are_refused_before_they_are_read(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head(f"Content-Length: {2 << 30}"))
        answer = b"".join(iter(lambda: connection.recv(4000), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"


@pytest.mark.parametrize("length", [f"Content-Length: {3 * MIB}", "Transfer-Encoding: chunked"])
def test_a_client_that_sends_all_before_it_reads_is_told(url: str, length: str) -> None:
    """A connection that is closed over unread bytes is reset, and the answer lost with it."""
    with connect(url) as connection:
        connection.sendall(head(length))
        for _ in range(48):
            piece = b" " * 65536
            connection.sendall(b"10000\r\n" + piece + b"\r\n" if "chunked" in length else piece)
        time.sleep(0.2)
        answer = b"".join(iter(lambda: connection.recv(4000), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"


def test_a_body_of_unknown_length_is_refused_where_it_grows_too_large(url: str) -> None:
    sent = 0
    with connect(url) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        try:
            while sent < 100 * MIB:
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
        assert sent < 20 * MIB


def test_a_body_that_dawdles_is_refused(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("Content-Length: 1000") + b"{")
        assert connection.recv(4000).startswith(b"HTTP/1.1 408 ")


def test_bodies_together_are_bounded(url: str) -> None:
    waiting = [connect(url) for _ in range(3)]
    for connection in waiting:
        connection.sendall(head(f"Content-Length: {MIB}") + b" " * (MIB - 1))
    time.sleep(0.2)
    reply = post(f"{url}/v1/chat/completions", content=b" " * 1000, headers=headers("secret"))
    for connection in waiting:
        connection.close()
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"


def test_the_server_lives_on_afterwards(url: str) -> None:
    reply = post(f"{url}/v1/chat/completions", json=BODY, headers=headers("secret"))
    assert reply.status_code == 200


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


@pytest.mark.parametrize("key", ["wrong", "secre", "secretly", "gehe\xefm"])
def test_a_wrong_key_is_refused(url: str, key: str) -> None:
    given = {"authorization": f"Bearer {key}".encode("latin-1")}
    for reply in (
        post(f"{url}/v1/chat/completions", json=BODY, headers=given),  # type: ignore[arg-type]  # raw bytes are taken
        get(f"{url}/v1/models"),
    ):
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "no_key"


def test_the_client_library_knows_a_wrong_key(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    right = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
    assert [model.id for model in right.models.list()] == ["tiny"]


def test_health_needs_no_key(url: str) -> None:
    assert get(f"{url}/health").status_code == 200


def test_heads_that_never_come_are_not_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.3)
    with connect(url) as silent, connect(url) as halting:
        halting.sendall(b"GET /health HTTP/1.1\r\nHost:")
        for connection in (silent, halting):
            try:
                assert connection.recv(100) == b""
            except ConnectionResetError:
                pass


def test_readers_that_never_read_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.3)
    state = {"ended": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b" " * MIB, "more_body": True})
            if (await is_gone(receive)) is True:
                break
        state["ended"] = True

    async def is_gone(receive: Any) -> bool:
        import asyncio

        try:
            message = await asyncio.wait_for(receive(), 0.001)
        except TimeoutError:
            return False
        return bool(message["type"] == "http.disconnect")

    with run_app(app, lambda: None) as port, connect(f"http://127.0.0.1:{port}") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: state["ended"])
