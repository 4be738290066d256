"""The door without a server: a link written by hand, and ways to send a request through the whole ASGI application."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import falcon.testing

from netwatch.http.app import App, create_app
from netwatch.http.request_log import Refusals
from netwatch.metrics.board import Board, WorkerMeter
from netwatch.queue import Stored
from netwatch.reports import ID
from netwatch.settings import Settings

PATH = "/api/v1/reports"
REPORT = b'{"clientId":"c","hosts":[]}'
JSON = "application/json"
NDJSON = "application/x-ndjson"


def report(number: int) -> bytes:
    return b'{"clientId":"c%d","hosts":[]}' % number


class FakeLink:
    """A writer that stores at once, or does what it is told to."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        """What each call of `store` brought."""
        self.keys: list[bytes] = []
        """The key's digest of each call, b"" without one."""
        self.result: Stored | None = None
        """What a request with a key gets; None: all its lines are new."""
        self.refusal: Exception | None = None
        self.is_holding = False
        self.held: list[asyncio.Future[Stored | None]] = []
        self.code: str | None = None
        self.max_waits_s: list[float] = []
        self.ages = (0.0, 0.0)

    def store(self, lines: bytes, key: bytes = b"") -> asyncio.Future[Stored | None]:
        self.stored.append(lines)
        self.keys.append(key)
        ack: asyncio.Future[Stored | None] = asyncio.get_running_loop().create_future()
        if self.refusal:
            ack.set_exception(self.refusal)
        elif self.is_holding:
            self.held.append(ack)
        elif key:
            ack.set_result(self.result or Stored(lines.count(b"\n"), lines[ID].decode()))
        else:
            ack.set_result(None)
        return ack

    def ages_s(self) -> tuple[float, float]:
        return self.ages

    def trouble(self, max_wait_s: float) -> str | None:
        self.max_waits_s.append(max_wait_s)
        return self.code

    @property
    def reports(self) -> list[Any]:
        """What was stored, in order."""
        return [json.loads(line)["report"] for lines in self.stored for line in lines.splitlines()]


def _as_served(app: App) -> App:
    """``app`` as our server calls it: Falcon's test client has the headers as what can be looked through only once."""

    async def served(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if "headers" in scope:
            scope["headers"] = [tuple(header) for header in scope["headers"]]
        await app(scope, receive, send)

    return served


class Door:
    """The application over a fake link; `settings` are those that differ from the default."""

    def __init__(self, **settings: Any) -> None:
        self.link = FakeLink()
        given: dict[str, Any] = {"name": "host1", "workers": 1, **settings}
        self.settings = Settings(**given)
        self.board = Board()
        self.meter = WorkerMeter()
        self.app = create_app(self.link, self.settings, self.board, self.meter, Refusals())
        self._client = falcon.testing.TestClient(_as_served(self.app))

    def request(self, method: str, path: str, **options: Any) -> falcon.testing.Result:
        options["extras"] = {"state": options.pop("state", {})}
        result: falcon.testing.Result = self._client.simulate_request(method, path, **options)
        return result

    def post(self, body: bytes, kind: str | None = JSON, **options: Any) -> falcon.testing.Result:
        headers = options.pop("headers", {}) | ({"content-type": kind} if kind is not None else {})
        return self.request("POST", PATH, body=body, headers=headers, **options)


class Exchange:
    """One POST, event by event: `chunks` are the body, `is_whole` whether its end came before the connection's."""

    def __init__(
        self,
        door: Door,
        chunks: Iterable[bytes],
        *,
        size: int | None = None,
        is_whole: bool = True,
        kind: str = JSON,
        path: str = PATH,
        client: str = "127.0.0.1",
        host: str | None = "x",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._app = door.app
        self._chunks = list(chunks)
        self._is_whole = is_whole
        self.gate = asyncio.Event()
        """Set it to let the body's end through, or the connection's."""
        self.gate.set()
        self.state: dict[str, Any] = {}
        self.is_begun = False
        """Whether the body is being read."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        framing = (b"transfer-encoding", b"chunked") if size is None else (b"content-length", b"%d" % size)
        more = [] if host is None else [(b"host", host.encode())]
        more += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", kind.encode()), framing, *more],
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "client": (client, 1),
            "state": self.state,
        }

    async def run(self) -> dict[str, Any]:
        """The answer, decoded; {} if none came."""
        await self._app(self._scope, self._receive, self._send)
        answer: dict[str, Any] = json.loads(self.body or b"{}")
        return answer

    async def _receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.is_begun = True
        if self._chunks:
            return {"type": "http.request", "body": self._chunks.pop(0), "more_body": True}
        await self.gate.wait()
        if not self._is_whole:
            return {"type": "http.disconnect"}
        self.state["body_complete"] = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


async def until(condition: Callable[[], object]) -> None:
    """Let the loop's other tasks run until the condition holds."""
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0)


def problem_of(result: falcon.testing.Result) -> dict[str, Any]:
    """The problem document that the answer is, checked for what all have in common."""
    assert result.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(result.content)
    assert document["status"] == result.status_code
    assert document["type"].startswith("urn:netwatch:error:")
    assert document["title"]
    assert document["detail"].endswith(".")
    return document


def code_of(result: falcon.testing.Result) -> str:
    code: str = problem_of(result)["type"].removeprefix("urn:netwatch:error:")
    return code
