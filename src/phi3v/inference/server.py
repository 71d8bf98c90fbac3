"""The web server: connections that dawdle are closed, and it stops cleanly."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for a client to send the head of a request, and to take what was written to it.
PATIENCE_SECONDS = 30.0
# Pages keep connections open for good, so waiting longer would not help.
_GRACE_SECONDS = 3


class PatientProtocol(H11Protocol):
    """HTTP whose patience ends: with heads that never come, and with readers that never read."""

    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_timer = self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the wait ends with a complete head."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self._start_timer()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._reader_timer = self._start_timer()

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        _cancel(self._reader_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _cancel(self._head_timer)
        _cancel(self._reader_timer)
        super().connection_lost(exc)

    def _start_timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Runs an app until SIGINT or SIGTERM.

    Args:
        app: The ASGI app.
        on_stop: Called when the server begins to stop.
        max_connections: Most connections; further ones are answered 503.
    """

    def __init__(self, app: Any, on_stop: Callable[[], None], max_connections: int = 512) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=max_connections,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at signals; unlike the library's own way, do not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {
            one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for one, handler in kept.items():
                signal.signal(one, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers in work, then the connections."""
        self._on_stop()
        await super().shutdown(sockets)


def open_socket(host: str, port: int) -> socket.socket:
    """Listen at an address; port 0 takes a free one.

    Raises:
        ValueError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # The library would leave its socket open.
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535")
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {host}, port {port} ({error}); give another --port or --host"
        ) from None
