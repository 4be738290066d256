"""uvicorn's HTTP protocol, with what it lacks: deadlines, a drain that cuts no connection, and word of a whole body.

It rests on the httptools protocol of uvicorn 0.54 (``data_received``, the parser's callbacks, ``shutdown``); uvicorn is
pinned to its minor version, and tests/test_dependencies.py says so when one of them is gone.
"""

from __future__ import annotations

import asyncio
import functools
import time
import urllib.parse
from collections import deque
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from netwatch.errors import ERRORS
from netwatch.http.cycle import Cycle, head
from netwatch.http.deadlines import NEVER, Deadlines, Due
from netwatch.http.metrics import Counting
from netwatch.http.problem import PROBLEM_TYPE, problem
from netwatch.http.request_log import RequestLog
from netwatch.settings import Settings

MAX_HEADER_BYTES: Final = 64 * 1024
"""More than this is refused where no body comes: in a header, a trailer, a chunk's size."""
DRAIN_IDLE_S: Final = 1.0
"""While draining, an idle keep-alive connection is closed after this long; a request until then is answered."""
ANSWER_S: Final = 1.0
"""While draining, this is left for the answers after the last request was cut off."""
LINGER_S: Final = 1.0
"""A client that is turned away is listened to until it has been silent for this long."""
MAX_PIPELINED: Final = 16
"""More requests than this behind one that waits for its answer are refused: each takes some 15 KiB as it waits."""


_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class Protocol(HttpToolsProtocol):
    """One connection. The deadlines and the cap are those of the settings."""

    header_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    max_connections: int
    deadlines: Deadlines
    request_log: RequestLog | None
    cycle: Cycle | None  # type: ignore[assignment]  # ours in place of uvicorn's
    """The last request that came."""
    due_s = NEVER
    _is_between = True
    """No request has begun that is not there whole."""
    _is_header_there = False
    _is_body_due = False
    _is_offer = False
    _is_over = False
    """Nothing that still comes is looked at."""
    _lingers_until_s: float | None = None
    _dry_bytes = 0
    _now_ns = 0
    """When the last bytes came (monotonic)."""
    _waiting: deque[Cycle]
    """Pipelined requests behind it, in order."""
    _started: Cycle | None = None
    """The request that is being answered."""
    _read_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._waiting = deque()
        self.deadlines.watch(self.loop, cast(set[Due], self.connections))
        self.due_s = self.deadlines.now_s + self.header_timeout_s
        if counting := self._counting:
            counting.connected(len(self.connections))
        if self.app_state.get("draining"):
            self.shutdown()
        if len(self.connections) > self.max_connections:
            self._is_over = True
            self._answer_instead("too_many_connections", "Use fewer connections, or try again later.")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._unset_read_deadline()
        for cycle in (self._started, self.cycle):
            if cycle:
                cycle.disconnect()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]  # it refers to us
        if counting := self._counting:
            counting.connected(len(self.connections))

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns None
        """The client sends no more; what it sent whole is still answered, except over TLS, which has no half."""
        cycle = self._answering
        if not cycle or self.scheme == "https":
            return False
        self._is_over = True
        cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Parse it, in place of uvicorn's own method: that one loses the bodies of requests that offer an upgrade."""
        if self._is_over:
            if self._lingers_until_s:
                self.due_s = min(self.deadlines.now_s + LINGER_S, self._lingers_until_s)
            return
        self._now_ns = time.monotonic_ns()
        self._dry_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._answering:
                self._refuse("Wait for an answer before you offer another protocol.")
            else:
                self._decline(data[offer.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse("What came is no HTTP request.")
            return
        if self._dry_bytes > MAX_HEADER_BYTES:
            self._refuse(f"Send a header of at most {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        if len(self._waiting) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.due_s = self.deadlines.now_s + self.header_timeout_s
        self._is_between = self._is_header_there = self._is_body_due = False

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):  # the parser lets 0.9 and 2.0 through
            raise httptools.HttpParserError("unknown version")
        self._dry_bytes = 0
        method = parser.get_method()
        self._is_offer = parser.should_upgrade() and method != b"CONNECT"
        if self._is_offer:
            return
        self._is_header_there = True
        path, raw_path, query_string = _target(self.url)
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": self.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query_string,
            "root_path": "",
            "headers": self.headers,
            "server": self.server,
            "client": self.client,
            "state": self.app_state.copy(),
        }
        self.headers = []  # a trailer is none of the request's
        keep_alive = version == "1.1" and parser.should_keep_alive() and not self.app_state.get("draining")
        before = self.cycle
        self.cycle = Cycle(self, scope, self._now_ns, keep_alive=keep_alive, expects_continue=self.expect_100_continue)
        if before is None or before.is_answered:
            self._start(self.cycle)
        else:
            self.flow.pause_reading()
            self._waiting.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._dry_bytes = 0
        if self.cycle and not self.cycle.is_answered:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        if self._is_offer:
            return
        self._dry_bytes = 0
        self._is_between = True
        cycle = self.cycle
        assert cycle
        cycle.end(self._now_ns)
        self.due_s = self.deadlines.now_s + self.idle_timeout_s if cycle.is_answered else NEVER

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def _start(self, cycle: Cycle) -> None:
        self._started = cycle
        cycle.task = self.loop.create_task(cycle.run(self.app, self.tasks))
        self.tasks.add(cycle.task)

    @property
    def _counting(self) -> Counting | None:
        """Where the worker has one, it counts."""
        return self.app_state.get("counting")

    def on_answer(self, cycle: Cycle, status: int, body: bytes) -> None:
        """The request in work was answered: on to the next, or wait for one."""
        now_ns = time.monotonic_ns()
        if counting := self._counting:
            counting.answered(cycle.scope, status, now_ns)
        if self.request_log:
            self.request_log.look(cycle, status, body, now_ns)
        transport = self.transport
        if transport.get_write_buffer_size():
            self._expect_reader()
        if transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if not cycle.keep_alive:  # it was refused before its body was there
            self._linger(self.body_timeout_s)
        elif self._waiting:
            self._start(self._waiting.popleft())
        elif self._is_between:
            self.due_s = self.deadlines.now_s + self.idle_timeout_s

    def on_due(self) -> None:
        """Give up what has not come in time; a body's time counts from its header's deadline on."""
        if self._is_over:
            self.transport.abort()
        elif self._is_between:
            self.transport.close()
        elif self._is_header_there and not self._is_body_due:
            self._is_body_due = True
            self.due_s += self.body_timeout_s
            return
        else:
            self.transport.abort()
        self.due_s = NEVER

    def shutdown(self) -> None:
        """Drain: answer what is there or comes soon, with ``connection: close``, and cut off what is too slow."""
        self.app_state["draining"] = True
        if self.cycle is None or self.cycle.is_answered:
            self.loop.call_later(DRAIN_IDLE_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False
        limit_s = self.config.timeout_graceful_shutdown or 0
        self.loop.call_later(max(limit_s - ANSWER_S, 0.0), self._cut_off)

    @property
    def _answering(self) -> Cycle | None:
        """The last request, if it is there whole and waits for its answer."""
        return self.cycle if self.cycle and self.cycle.is_whole and not self.cycle.is_answered else None

    def _decline(self, rest: bytes) -> None:
        """Take a request that offers another protocol (Java's HTTP client offers h2c) as if it did not.

        httptools ends such a request after its header and takes its body for bytes of the other protocol: parsed on,
        they would be a second request.
        """
        version = self.parser.get_http_version().encode()
        header = [b"%b: %b\r\n" % member for member in self.headers if member[0] != b"upgrade"]
        start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(b"".join([start, *header, b"\r\n", rest]))

    def _refuse(self, detail: str) -> None:
        """Answer 400 and close; but what came whole before is answered first, for it may have been stored."""
        self._is_over = True
        self.due_s = NEVER
        if cycle := self._answering:
            cycle.keep_alive = False
        elif self._waiting:  # those before the broken one are whole
            self._waiting.pop()
            if before := self._waiting[-1] if self._waiting else self._started:
                self.cycle = before
                self.cycle.keep_alive = False
        else:
            self._answer_instead("bad_request", detail)

    def _answer_instead(self, code: str, detail: str) -> None:
        """Answer the connection, where there is no request to answer, and close it."""
        status, _ = ERRORS[code]
        if counting := self._counting:
            counting.refused(status, code)
        refuse = self.app_state.get("refuse")
        body = problem(code, detail, instance=refuse(code, detail) if refuse else None)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        self.transport.write(head(status, tuple(headers), is_last=True) + body)
        if len(self.connections) > 2 * self.max_connections:
            self.transport.close()
        else:
            self._linger(LINGER_S)

    def _linger(self, at_most_s: float) -> None:
        """Close once the client has: it may still be sending, and closed at once it would be reset before it reads."""
        self._is_over = True
        self._lingers_until_s = self.deadlines.now_s + at_most_s
        self.due_s = self.deadlines.now_s + LINGER_S
        if self.transport.can_write_eof():  # TLS has no half
            self.transport.write_eof()

    def _close_if_idle(self) -> None:
        if self._is_between and (self.cycle is None or self.cycle.is_answered):
            self.transport.close()

    def _cut_off(self) -> None:
        if not self._is_between and not self._answering and not self._waiting:
            self.transport.abort()

    def _expect_reader(self) -> None:
        """Close the connection of a client that does not read its answers: they take memory, and never end."""
        self._read_deadline = self._read_deadline or self.loop.call_later(self.body_timeout_s, self._on_read_deadline)

    def _on_read_deadline(self) -> None:
        self._read_deadline = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _unset_read_deadline(self) -> None:
        if self._read_deadline:
            self._read_deadline.cancel()
            self._read_deadline = None


@functools.lru_cache(maxsize=64)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """A request target as the ASGI scope has it: path, raw path, query; raises HttpParserInvalidURLError."""
    parsed = httptools.parse_url(url)
    return urllib.parse.unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""


def protocol_settings(settings: Settings) -> dict[str, Any]:
    """uvicorn's settings: our protocol and drain; no access log, no proxy headers, no WebSockets."""

    class Configured(Protocol):
        header_timeout_s = settings.header_timeout_s
        body_timeout_s = settings.body_timeout_s
        idle_timeout_s = settings.idle_timeout_s
        deadlines = Deadlines()
        request_log = RequestLog.of(settings)
        max_connections = max(settings.max_connections // settings.workers, 1)

    return {
        "http": Configured,
        "ws": "none",
        "loop": "uvloop",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": settings.drain_timeout_s + ANSWER_S,
    }
