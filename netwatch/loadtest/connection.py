"""One keep-alive connection to the server."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from netwatch.loadtest.answers import Answer, parse_answer


class Closed(Exception):
    """The connection ended before the answer was whole; `begun` says that some of it had come."""

    def __init__(self, begun: bool) -> None:
        super().__init__("cut" if begun else "closed")
        self.begun = begun


class Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self) -> None:
        self.usable = False
        self.answers_total = 0
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._asked_s = 0.0
        self._transport: asyncio.Transport

    async def exchange(self, request: bytes) -> Answer:
        """Send a request, return its answer. Raises Closed, ValueError (no HTTP answer) or TimeoutError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._asked_s = time.monotonic()
        self._transport.write(request)
        answer = await self._answer
        self.answers_total += 1
        if answer.closes:
            self.abort()
        return answer

    def give_up(self, before_s: float) -> None:
        """End an exchange that began earlier with a TimeoutError; one timer does this for all connections."""
        if self._answer is not None and not self._answer.done() and self._asked_s < before_s:
            self._answer.set_exception(TimeoutError())

    def abort(self) -> None:
        self.usable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Where nobody listens, a connect to a port of the ephemeral range may meet itself.
        self.usable = transport.get_extra_info("sockname") != transport.get_extra_info("peername")

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()  # nothing was asked: the next request goes over another connection
            return
        if self._received:
            self._received += data
        try:
            answer = parse_answer(self._received or data)
        except ValueError as error:
            self._answer.set_exception(error)
            return
        if answer is not None:
            self._received.clear()
            self._answer.set_result(answer)
        elif not self._received:
            self._received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Closed(begun=bool(self._received)))
