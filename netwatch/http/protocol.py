"""uvicorn's HTTP protocol, with what it lacks: deadlines, a drain that cuts no connection, and word of a whole body.

It rests on the httptools protocol of uvicorn 0.54 (``data_received``, the parser's callbacks, ``shutdown``); uvicorn is
pinned to its minor version, and tests/test_dependencies.py says so when one of them is gone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_S: Final = 10.0
"""A request's header must be there this long after the connection or the header's first byte."""
BODY_S: Final = 60.0
"""A request must be there whole this long after that."""
IDLE_S: Final = 75
"""A keep-alive connection is closed when nothing comes for this long."""
DRAIN_IDLE_S: Final = 1.0
"""While draining, an idle keep-alive connection is closed after this long; a request until then is answered."""
ANSWER_S: Final = 1.0
"""While draining, this is left for the answers after the last request was cut off."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _is_header_there = False
    _is_request_there = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_S, self._on_header_deadline)
        if self.app_state.get("draining"):
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_request_there:
            self._unset_deadline()
        elif not self._deadline and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_S, self._on_header_deadline)

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
            self._deadline = self.loop.call_later(BODY_S, self.transport.abort)
        else:
            self.transport.abort()

    def _unset_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def protocol_settings(drain_timeout_s: float) -> dict[str, Any]:
    """uvicorn's settings: no access log, no proxy headers, no WebSockets, and the drain's length."""
    return {
        "http": Protocol,
        "ws": "none",
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": IDLE_S,
        "timeout_graceful_shutdown": drain_timeout_s + ANSWER_S,
    }
