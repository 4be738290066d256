"""Keep-alive clients that post a run's reports one request after another, and write down every answer.

No request is ever sent again: after a connection broke, the client goes on with a new one and new reports, so that
whatever is stored can be explained by exactly one request.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO, cast
from urllib.parse import urlsplit

from netwatch.loadtest.ledger import Ledger, fate_of
from netwatch.loadtest.reports import Reports

ANSWER_TIMEOUT_S = 10.0
REFUSED_PAUSE_S = 0.02

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes


class Closed(Exception):
    """The connection ended before the answer was whole; `begun` says that some of it had come."""

    def __init__(self, begun: bool) -> None:
        super().__init__("cut" if begun else "closed")
        self.begun = begun


def parse_answer(data: bytes | bytearray) -> Answer | None:
    """The answer that `data` is, None while it is incomplete; ValueError when it is no answer or more than one."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[: end + 2])
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 ") or length is None:
        raise ValueError(f"no answer with a Content-Length: {head[:80]!r}")
    whole = end + 4 + int(length[1])
    if len(data) < whole:
        return None
    if len(data) > whole:
        raise ValueError(f"{len(data) - whole} bytes after an answer")
    return Answer(int(head[9:12]), head, bytes(data[end + 4 : whole]))


class Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self) -> None:
        self.usable = False
        self.answers_total = 0
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport

    async def exchange(self, request: bytes) -> Answer:
        """Send a request, return its answer. Raises Closed, ValueError (no HTTP answer) or TimeoutError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await self._answer
        self.answers_total += 1
        if _CLOSE.search(answer.head):
            self.abort()
        return answer

    def abort(self) -> None:
        self.usable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Where nobody listens, a connect to a port of the ephemeral range may meet itself.
        self.usable = transport.get_extra_info("sockname") != transport.get_extra_info("peername")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is None or self._answer.done():
            self.abort()  # nothing was asked: the next request goes over another connection
            return
        try:
            answer = parse_answer(self._received)
        except ValueError as error:
            self._answer.set_exception(error)
            return
        if answer is not None:
            self._received.clear()
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Closed(begun=bool(self._received)))


@dataclass(slots=True)
class Tally:
    """What the clients saw, in numbers."""

    requests: Counter[int | str] = field(default_factory=Counter)  # by outcome: a status, or closed, cut, …
    reports: Counter[int | str] = field(default_factory=Counter)
    latencies_s: array[float] = field(default_factory=lambda: array("f"))  # of answers, whatever their status
    dropped_total: int = 0  # closed or cut on a connection that had answered before
    anomalies: list[str] = field(default_factory=list)
    anomalies_total: int = 0

    def anomaly(self, text: str) -> None:
        self.anomalies_total += 1
        if len(self.anomalies) < 10:
            self.anomalies.append(text)


class Load:
    """A closed loop of clients against one server: each sends its next request when the last was answered."""

    def __init__(
        self, url: str, reports: Reports, ledger: Ledger, *, batch: int = 0, log: TextIO | None = None
    ) -> None:
        """`batch` 0 sends single JSON objects, N sends NDJSON of N reports; `log` takes a line of JSON per request."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"not an http:// address: {url}")
        self._host, self._port = parts.hostname, parts.port or 80
        kind = "application/x-ndjson" if batch else "application/json"
        self._head = (
            f"POST {parts.path.rstrip('/')}/api/v1/reports HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: "
        ).encode()
        self._reports, self._ledger, self._count, self._log = reports, ledger, max(1, batch), log
        self.tally = Tally()
        self.duration_s = 0.0
        self._until_s = 0.0

    def end(self) -> None:
        """End :meth:`run` early; from any thread."""
        self._until_s = 0.0

    async def run(self, duration_s: float) -> None:
        """Keep every client of the ledger busy for so long, then wait for the last answers."""
        start_s = time.monotonic()
        self._until_s = start_s + duration_s
        async with asyncio.TaskGroup() as clients:
            for client in range(len(self._ledger.fates)):
                clients.create_task(self._client(client))
        self.duration_s = time.monotonic() - start_s

    async def _client(self, client: int) -> None:
        connection: Connection | None = None
        while time.monotonic() < self._until_s:
            numbers = self._ledger.take(client, self._count)
            request = self._request(client, numbers)
            start_s = time.monotonic()
            outcome: int | str = "refused"
            if connection is None or not connection.usable:
                connection = await self._connect()
            earlier_total = connection.answers_total if connection else 0
            if connection is not None:
                outcome = await self._outcome(connection, request)
            latency_s = time.monotonic() - start_s
            self._settle(client, numbers, outcome, latency_s, earlier_total)
            if outcome == "refused":
                await asyncio.sleep(REFUSED_PAUSE_S)
        if connection is not None and connection.usable:
            connection.abort()

    def _request(self, client: int, numbers: range) -> bytes:
        body = b"\n".join([self._reports.body(self._ledger.report_id(client, number)) for number in numbers])
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    async def _connect(self) -> Connection | None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        except OSError:  # TimeoutError is one
            return None
        if not connection.usable:
            connection.abort()
            return None
        return connection

    async def _outcome(self, connection: Connection, request: bytes) -> int | str:
        try:
            answer = await connection.exchange(request)
        except Closed as closed:
            return str(closed)
        except TimeoutError:
            connection.abort()
            return "timeout"
        except ValueError as error:
            connection.abort()
            self.tally.anomaly(str(error))
            return "garbage"
        self._look_at(answer)
        return answer.status

    def _look_at(self, answer: Answer) -> None:
        """Count it as an anomaly when the answer breaks what the interface promises."""
        if answer.status == 200:
            try:
                whole = json.loads(answer.body)["accepted"] == self._count
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                self.tally.anomaly(f"200 that does not accept {self._count}: {answer.body[:300]!r}")
        elif answer.status in (429, 503) and not _RETRY_AFTER.search(answer.head):
            self.tally.anomaly(f"{answer.status} without Retry-After: {answer.body[:300]!r}")

    def _settle(self, client: int, numbers: range, outcome: int | str, latency_s: float, earlier_total: int) -> None:
        self._ledger.settle(client, numbers, fate_of(outcome))
        tally = self.tally
        tally.requests[outcome] += 1
        tally.reports[outcome] += len(numbers)
        if isinstance(outcome, int):
            tally.latencies_s.append(latency_s)
        elif outcome in ("closed", "cut") and earlier_total:
            tally.dropped_total += 1
        if self._log is not None:
            shown = outcome if isinstance(outcome, int) else f'"{outcome}"'
            self._log.write(
                f'{{"id":"{self._ledger.report_id(client, numbers.start)}","reports":{len(numbers)},'
                f'"outcome":{shown},"latency_s":{latency_s:.6f},"time":{time.time():.6f},'
                f'"earlier_answers":{earlier_total}}}\n'
            )
