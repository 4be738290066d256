"""One request of a connection and its answer, in place of uvicorn's: the answer leaves whole, in one write.

uvicorn checks every header with two regular expressions and writes head and body apart: a fifth of what a small report
costs a worker. Ours takes answers that are whole in one message, and netwatch gives no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from netwatch import log

_DISCONNECT: Final[dict[str, Any]] = {"type": "http.disconnect"}
Headers = list[tuple[bytes, bytes]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def head(status: int, headers: Headers, *, is_last: bool) -> bytes:
    """An answer's first lines; ``is_last`` says that the connection ends with it. A line break in a header raises."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    if is_last:
        lines.append(b"connection: close\r\n")
    text = b"".join(lines)
    if text.count(b"\n") != len(lines) or text.count(b"\r") != len(lines):
        raise ValueError("a header holds a line break")
    return b"%b%b\r\n" % (STATUS_LINE[status], text)


class Cycle:
    """A request on its way to the application, and the application's answer to it.

    ``on_answer`` is called once that was given; where it is the connection's last and the body has not come whole, the
    connection is still open then. ``default_headers`` come first in it.
    """

    __slots__ = (
        "_default_headers",
        "_expects_continue",
        "_flow",
        "_has_news",
        "_on_answer",
        "_pieces",
        "_size",
        "_start",
        "_transport",
        "_waiter",
        "began_s",
        "is_answered",
        "is_disconnected",
        "is_whole",
        "keep_alive",
        "scope",
        "task",
        "whole_s",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: Headers,
        on_answer: Callable[[Cycle, int, bytes], None],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.began_s = self.whole_s = 0.0
        """When its header was there, and when its body was, by the loop's clock."""
        self.is_whole = False
        """Its body has come to its end."""
        self.is_answered = False
        self.is_disconnected = False
        self.task: asyncio.Task[None] | None = None
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._on_answer = on_answer
        self._expects_continue = expects_continue
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
                self._transport.close()
            if self.task:
                tasks.discard(self.task)

    def take(self, piece: bytes) -> None:
        """More of the body has come; what nobody fetches keeps the rest from being read."""
        self._expects_continue = False  # or no longer: it comes unasked
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        self._wake()

    def end(self) -> None:
        """The body is whole."""
        self._expects_continue = False
        self.is_whole = True
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
        """ASGI's ``receive``."""
        if not self._has_news and not self.is_disconnected and not self.is_answered:
            if self._expects_continue:
                self._expects_continue = False
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._flow.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._has_news = False
        if self.is_disconnected or self.is_answered:
            return _DISCONNECT
        pieces, self._pieces, self._size = self._pieces, [], 0
        return {"type": "http.request", "body": b"".join(pieces), "more_body": not self.is_whole}

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's ``send``, for an answer with its body in one message."""
        if self._flow.write_paused and not self.is_disconnected:
            await self._flow.drain()
        if self.is_disconnected:
            return
        if not self._start:
            self._start = message
            return
        if self.is_answered or message.get("more_body"):
            raise RuntimeError("answer a request once, with a body in one message")
        if self._expects_continue:  # nobody knows whether the body that was not asked for follows
            self.keep_alive = False
        body = message.get("body", b"")
        headers = self._default_headers + self._start["headers"]
        start = head(self._start["status"], headers, is_last=not self.keep_alive)
        self._transport.write(start + body)
        self.is_answered = True
        if not self.keep_alive and self.is_whole:
            self._transport.close()
        self._wake()
        self._on_answer(self, self._start["status"], body)
