"""Clients that post a run's reports one request after another, and write down every answer.

Without keys no request is ever sent again: after a connection broke, the client goes on with a new one and new reports,
so that whatever is stored can be explained by exactly one request. With keys a request whose answer was lost, or which
was put off (503, 429), is sent again under its key until an answer tells, and must be stored once all the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import TextIO

from netwatch.loadtest.answers import Answer, accepted
from netwatch.loadtest.connection import Closed, Connection
from netwatch.loadtest.ledger import Fate, Ledger, fate_of, mark_of
from netwatch.loadtest.pace import Pace
from netwatch.loadtest.requests import Address, Request, Requests
from netwatch.loadtest.tally import Outcome, Tally

ANSWER_TIMEOUT_S = 10.0
REFUSED_PAUSE_S = 0.02
GRACE_S = 10.0  # how long after the end of the run what was due before is still sent, or sent again under its key


class Load:
    """Clients of one server: each sends its next request when the last was answered and, with a rate, it is due."""

    def __init__(
        self,
        target: Address,
        requests: Requests,
        ledger: Ledger,
        *,
        rate: float = 0.0,
        keys: bool = False,
        new_connections: float = 0.0,
        log: TextIO | None = None,
    ) -> None:
        """`rate` is of requests a second, of all clients together, 0 as many as they can; with `keys` the requests have
        one and may be sent again; `new_connections` is the share of the clients that open a connection for each
        request; `log` takes a line of JSON per request."""
        self._target, self._requests, self._ledger = target, requests, ledger
        self._rate, self._keys, self._log = rate, keys, log
        self._hasty_total = round(new_connections * len(ledger.fates))
        self._connections: list[Connection | None] = [None] * len(ledger.fates)
        self._pace: Pace | None = None
        self._until_s = 0.0
        self.tally = Tally()
        self.start_s = 0.0
        self.duration_s = 0.0

    def end(self) -> None:
        """End :meth:`run` early; from any thread."""
        self._until_s = min(self._until_s, time.monotonic())
        if self._pace:
            self._pace.until_s = self._until_s

    async def run(self, duration_s: float) -> None:
        """Keep every client of the ledger busy for so long, then wait for the last answers."""
        self.start_s = time.monotonic()
        self._until_s = self.start_s + duration_s
        if self._rate:
            self._pace = Pace(self._rate, self.start_s, self._until_s)
        watch = asyncio.create_task(self._give_up_in_time())
        try:
            async with asyncio.TaskGroup() as clients:
                for client in range(len(self._ledger.fates)):
                    clients.create_task(self._client(client))
        finally:
            watch.cancel()
            if self._pace:
                self.tally.unsent_total = max(0, self._pace.close() - self.tally.requests.total())
            self.duration_s = time.monotonic() - self.start_s

    async def _give_up_in_time(self) -> None:
        """One timer for all connections: one for each exchange would cost as much as the rest of it."""
        while True:
            await asyncio.sleep(0.1)
            before_s = time.monotonic() - ANSWER_TIMEOUT_S
            for connection in self._connections:
                if connection is not None:
                    connection.give_up(before_s)

    async def _client(self, client: int) -> None:
        is_hasty = client < self._hasty_total
        while True:
            due_s = await self._pace.turn() if self._pace else time.monotonic()
            if due_s >= self._until_s or time.monotonic() > self._until_s + GRACE_S:
                break
            await self._deliver(client, self._requests.next(client, is_last=is_hasty), due_s)
            if is_hasty:
                self._close(client)
        self._close(client)

    async def _deliver(self, client: int, request: Request, due_s: float) -> None:
        """Send a request; with a key, again and again until an answer tells or the time is up."""
        in_doubt = False
        while True:
            outcome, answer, earlier_total = await self._attempt(client, request.wire)
            now_s = time.monotonic()
            if answer is not None:
                self._look_at(client, answer, request, may_repeat=in_doubt)
            elif earlier_total and outcome in ("closed", "cut"):
                self.tally.dropped_total += 1
            if self._log is not None:
                self._write_log(self._log, client, request, outcome, now_s - due_s, earlier_total)
            pause_s = _pause_s(outcome, answer, earlier_total)
            if not self._keys or pause_s is None or now_s + pause_s > self._until_s + GRACE_S:
                break
            self.tally.count_retried(request, outcome, now_s - self.start_s)
            in_doubt = in_doubt or fate_of(outcome) is Fate.UNKNOWN
            await asyncio.sleep(pause_s)
        fate = fate_of(outcome)
        if in_doubt and fate is not Fate.ACKED:  # that it was refused at last says nothing about the times before
            fate = Fate.UNKNOWN
        self._ledger.settle(client, request.numbers, fate, request.bad)
        self.tally.count(request, outcome, now_s - self.start_s, now_s - due_s)
        if outcome == "refused":
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def _attempt(self, client: int, wire: bytes) -> tuple[Outcome, Answer | None, int]:
        """Send it once: the outcome, the answer if there is one, and how many the connection had carried before."""
        connection = self._connections[client]
        if connection is None or not connection.usable:
            connection = self._connections[client] = await self._connect()
            if connection is None:
                return "refused", None, 0
        earlier_total = connection.answers_total
        try:
            answer = await connection.exchange(wire)
        except Closed as closed:
            return str(closed), None, earlier_total
        except TimeoutError:
            connection.abort()
            return "timeout", None, earlier_total
        except ValueError as error:
            connection.abort()
            self.tally.anomaly(str(error))
            return "garbage", None, earlier_total
        return answer.status, answer, earlier_total

    async def _connect(self) -> Connection | None:
        loop, target = asyncio.get_running_loop(), self._target
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                _, connection = await loop.create_connection(Connection, target.host, target.port, ssl=target.tls)
        except OSError:  # TimeoutError is one
            return None
        if not connection.usable:
            connection.abort()
            return None
        return connection

    def _close(self, client: int) -> None:
        connection = self._connections[client]
        if connection is not None and connection.usable:
            connection.abort()

    def _look_at(self, client: int, answer: Answer, request: Request, *, may_repeat: bool) -> None:
        """Count it as an anomaly when it breaks what the interface promises; write down the id that it gives."""
        if answer.status == 200:
            try:
                duplicates, line_id = accepted(answer, request, may_repeat=may_repeat)
                self.tally.duplicates_total += duplicates
                self._ledger.marks[client][request.first_good] = mark_of(line_id)
            except ValueError as error:
                self.tally.anomaly(str(error))
        elif answer.status in (429, 503) and answer.retry_after_s is None:
            self.tally.anomaly(f"{answer.status} without Retry-After: {answer.body[:300]!r}")

    def _write_log(
        self, log: TextIO, client: int, request: Request, outcome: Outcome, latency_s: float, earlier_total: int
    ) -> None:
        shown = outcome if isinstance(outcome, int) else f'"{outcome}"'
        log.write(
            f'{{"id":"{self._ledger.report_id(client, request.numbers.start)}","reports":{len(request.numbers)},'
            f'"outcome":{shown},"latency_s":{latency_s:.6f},"time":{time.time():.6f},'
            f'"earlier_answers":{earlier_total}}}\n'
        )


def _pause_s(outcome: Outcome, answer: Answer | None, earlier_total: int) -> float | None:
    """How long to wait before the request is sent again under its key; None when the outcome is final."""
    if answer is None:
        # A server may close a connection that it has kept alive at any moment, and has then not read the request.
        return 0.0 if outcome == "closed" and earlier_total else REFUSED_PAUSE_S
    if answer.status in (429, 503):
        return 1.0 if answer.retry_after_s is None else answer.retry_after_s
    return None
