"""A server of the test's own process, at a free port, that stops with its context."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import torch
from fastapi import FastAPI

from phi3v.inference.api import ApiSettings, add_api
from phi3v.inference.guard import Bounds, Guard
from phi3v.inference.server import Server, open_socket
from phi3v.inference.service import Service

# A busy machine may need longer than the five seconds that are usual.
get, post = partial(httpx.get, timeout=60), partial(httpx.post, timeout=60)


@contextmanager
def run_app(app: Any, on_stop: Any) -> Iterator[int]:
    """Serve an app in a thread and give its port."""
    with open_socket("127.0.0.1", 0) as listener:
        server = Server(app, on_stop=on_stop)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server has not stopped"


@contextmanager
def run_api(
    service: Service,
    *,
    settings: ApiSettings | None = None,
    bounds: Bounds | None = None,
    api_key: str | None = None,
) -> Iterator[str]:
    """Serve the API of a service and give its address."""
    app = FastAPI()
    add_api(app, service, settings or ApiSettings())
    guard = Guard(app, bounds or Bounds(), api_key)
    with run_app(guard, service.scheduler.close) as port:
        yield f"http://127.0.0.1:{port}"
    assert service.scheduler.join(60), "the thread of the model has not stopped"


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition of another thread."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def make_endless(model: Any) -> Any:
    """Keep a model from ending its answers: no end of an answer is ever the likeliest token."""
    with torch.no_grad():
        model.lm_head.weight[model.config.stop_token_ids] = 0
    return model
