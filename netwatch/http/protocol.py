"""uvicorn's HTTP protocol, with what it lacks: deadlines, a drain that cuts no connection, and word of a whole body.

It rests on the httptools protocol of uvicorn 0.54 (``data_received``, the parser's callbacks, ``shutdown``); uvicorn is
pinned to its minor version, and tests/test_dependencies.py says so when one of them is gone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from netwatch.errors import Overloaded, Refused
from netwatch.settings import Settings

MAX_HEADER_BYTES: Final = 64 * 1024
"""A longer request header is refused with 400."""
DRAIN_IDLE_S: Final = 1.0
"""While draining, an idle keep-alive connection is closed after this long; a request until then is answered."""
ANSWER_S: Final = 1.0
"""While draining, this is left for the answers after the last request was cut off."""


class Protocol(HttpToolsProtocol):
    """One connection; what it is given, :func:`protocol_settings` sets."""

    header_timeout_s: float
    body_timeout_s: float
    max_connections: int
    _header_bytes = 0
    _is_broken = False
    _deadline: asyncio.TimerHandle | None = None
    _is_header_there = False
    _is_request_there = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.header_timeout_s, self._on_header_deadline)
        if len(self.connections) > self.max_connections:
            self._refuse(Overloaded("too_many_connections", "Try again later, or use fewer connections."))
        if self.app_state.get("draining"):
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_broken or self.transport.is_closing():
            return
        super().data_received(data)
        self._header_bytes = 0 if self._is_header_there else self._header_bytes + len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self.send_400_response("")
        elif self._is_request_there:
            self._unset_deadline()
        elif not self._deadline and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.header_timeout_s, self._on_header_deadline)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_header_there = self._is_request_there = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_header_there = True
        if self.app_state.get("draining"):
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._is_request_there = True
        self.scope["state"]["body_complete"] = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of every other error; a whole request before it is answered first."""
        self._is_broken = True
        if self.cycle and not self.cycle.more_body and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._unset_deadline()
        else:
            self._refuse(Refused("bad_request", "Send valid HTTP/1.1."))

    def _refuse(self, error: Refused) -> None:
        """Answer the connection instead of a request, and close it."""
        document = error.document()
        headers = {
            **error.headers,
            "content-type": "application/problem+json",
            "content-length": str(len(document)),
            "connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + head.encode() + b"\r\n" + document)
        self.transport.close()

    def shutdown(self) -> None:
        """Drain: answer what is there or comes soon, with ``connection: close``, and cut off what is too slow."""
        self.app_state["draining"] = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(DRAIN_IDLE_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False
        limit_s = self.config.timeout_graceful_shutdown or 0
        self.loop.call_later(max(limit_s - ANSWER_S, 0.0), self._cut_off)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _cut_off(self) -> None:
        if not self._is_request_there:
            self.transport.abort()

    def _on_header_deadline(self) -> None:
        if self._is_header_there:
            self._deadline = self.loop.call_later(self.body_timeout_s, self.transport.abort)
        else:
            self.transport.abort()

    def _unset_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def protocol_settings(settings: Settings) -> dict[str, Any]:
    """uvicorn's settings: our protocol and drain; no access log, no proxy headers, no WebSockets."""

    class Configured(Protocol):
        header_timeout_s = settings.header_timeout_s
        body_timeout_s = settings.body_timeout_s
        max_connections = max(settings.max_connections // settings.workers, 1)

    return {
        "http": Configured,
        "ws": "none",
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": settings.idle_timeout_s,
        "timeout_graceful_shutdown": settings.drain_timeout_s + ANSWER_S,
    }
