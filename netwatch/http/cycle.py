"""One request of a connection and its answer, in place of uvicorn's: the answer leaves whole, in one write.

uvicorn checks every header with two regular expressions and writes head and body apart: a fifth of what a small report
costs a worker. Ours takes answers that are whole in one message, and netwatch gives no others.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from netwatch import log

_DISCONNECT: Final[dict[str, Any]] = {"type": "http.disconnect"}
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@functools.lru_cache(maxsize=256)
def head(status: int, headers: tuple[tuple[bytes, bytes], ...], *, is_last: bool) -> bytes:
    """An answer's first lines; ``is_last`` says that the connection ends with it. A line break in a header raises."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    if is_last:
        lines.append(b"connection: close\r\n")
    text = b"".join(lines)
    if text.count(b"\n") != len(lines) or text.count(b"\r") != len(lines):
        raise ValueError("a header holds a line break")
    return b"%b%b\r\n" % (STATUS_LINE[status], text)


class Connection(Protocol):
    """What a request knows of its connection."""

    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState

    def on_answer(self, cycle: Cycle, status: int, body: bytes) -> None:
        """The request was answered; if that is the connection's last answer, and the body has not come whole, the
        connection is still open."""


class Cycle:
    """A request on its way to the application, and the application's answer to it. Times are monotonic."""

    __slots__ = (
        "_connection",
        "_expects_continue",
        "_has_news",
        "_is_begun",
        "_pieces",
        "_size",
        "_start",
        "_waiter",
        "began_ns",
        "is_answered",
        "is_disconnected",
        "is_whole",
        "keep_alive",
        "scope",
        "task",
    )

    def __init__(
        self, connection: Connection, scope: dict[str, Any], began_ns: int, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.began_ns = began_ns
        """When its header was there."""
        self.is_whole = False
        """Its body has come to its end."""
        self.is_answered = False
        self.is_disconnected = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._expects_continue = expects_continue
        self._is_begun = False
        self._has_news = expects_continue  # that there is a request, so that it may be refused before its body is sent
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._start: dict[str, Any] | None = None

    async def run(self, app: App, tasks: set[asyncio.Task[None]]) -> None:
        """Have ``app`` answer. A connection whose request it leaves unanswered is closed."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:
            log.error("request_failed", method=self.scope["method"], error=repr(error))
        finally:
            if not self.is_answered and not self.is_disconnected:
                self._connection.transport.close()
            if self.task:
                tasks.discard(self.task)

    def take(self, piece: bytes) -> None:
        """More of the body has come; what nobody fetches keeps the rest from being read."""
        self._expects_continue = False  # or no longer: it comes unasked
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > HIGH_WATER_LIMIT:
            self._connection.flow.pause_reading()
        self._wake()

    def end(self, now_ns: int) -> None:
        """The body is whole; in the request's state that is ``body_complete``."""
        self._expects_continue = False
        self.is_whole = True
        self.scope["state"]["body_complete"] = now_ns
        self._wake()

    def disconnect(self) -> None:
        """The client is gone."""
        self.is_disconnected = True
        self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """ASGI's ``receive``. A body that is there whole at the first call is also ``body`` in the request's state."""
        if not self._has_news and not self.is_disconnected and not self.is_answered:
            if self._expects_continue:
                self._expects_continue = False
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._connection.flow.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._has_news = False
        if self.is_disconnected or self.is_answered:
            return _DISCONNECT
        body = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        if self.is_whole and not self._is_begun:
            self.scope["state"]["body"] = body
        self._is_begun = True
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's ``send``, for an answer with its body in one message."""
        start = self._start
        if not start:
            self._start = message
            return
        connection = self._connection
        if connection.flow.write_paused and not self.is_disconnected:
            await connection.flow.drain()
        if self.is_disconnected:
            return
        if self.is_answered or message.get("more_body"):
            raise RuntimeError("answer a request once, with a body in one message")
        if self._expects_continue:  # nobody knows whether the body that was not asked for follows
            self.keep_alive = False
        status = start["status"]
        body = message.get("body", b"")
        headers = (*connection.server_state.default_headers, *start["headers"])
        connection.transport.write(head(status, headers, is_last=not self.keep_alive) + body)
        self.is_answered = True
        if not self.keep_alive and self.is_whole:
            connection.transport.close()
        if self._waiter:
            self._wake()
        connection.on_answer(self, status, body)
