"""Our protocol on a real socket: uvicorn in a thread with a small ASGI application, and a client that sends bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import uvicorn

from netwatch.http.protocol import protocol_settings
from netwatch.settings import Settings

PATIENCE_S = 10.0


def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait for another thread or process to bring the condition about."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.002)


class Seen(NamedTuple):
    """What the application saw of one request; `is_whole` is what the protocol said of the body at its end."""

    path: str
    body: bytes
    is_whole: bool
    is_draining: bool


class Served:
    """Answers each request with its body once that came; `/hold` waits for `release`, `/early` answers unread."""

    def __init__(self, **settings: Any) -> None:
        self.clients: list[Client] = []
        self.seen: list[Seen] = []
        self.cut: list[Seen] = []
        """Requests whose connection ended before their answer."""
        self.begun: list[str] = []
        self.headers: list[list[bytes]] = []
        self._gate: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.socket = socket.create_server(("127.0.0.1", 0))
        protocol = protocol_settings(Settings(**{"workers": 1, **settings}))
        config = uvicorn.Config(self._app, log_config=None, interface="asgi3", **protocol)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def forget(self) -> None:
        """Be as if just started."""
        self.hang_up()
        self.seen, self.cut, self.begun, self.headers = [], [], [], []
        if self._loop and self._gate:
            self._loop.call_soon_threadsafe(self._gate.clear)

    def hang_up(self) -> None:
        """Close what clients have not closed themselves."""
        for client in self.clients:
            client.close()
        self.clients = []
        until(lambda: self.connections == 0)

    def release(self) -> None:
        """Let all answers go that are held, and those of later requests."""
        assert self._loop
        assert self._gate
        with contextlib.suppress(RuntimeError):  # it has stopped
            self._loop.call_soon_threadsafe(self._gate.set)

    def drain(self) -> None:
        """Begin to stop; returns when every connection knows."""
        self.server.should_exit = True
        until(lambda: self.server.lifespan.state.get("draining") or not self.connections)

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self._loop = asyncio.get_running_loop()
            self._gate = asyncio.Event()
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.begun.append(scope["path"])
        self.headers.append([name for name, _ in scope["headers"]])
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message["body"]
            more = message["more_body"]
        state = scope["state"]
        seen = Seen(scope["path"], body, bool(state.get("body_complete")), bool(state.get("draining")))
        if more:
            self.cut.append(seen)
            return
        if scope["path"] == "/hold":
            assert self._gate
            await self._gate.wait()
        self.seen.append(seen)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Served]:
    served = Served(**settings)
    try:
        yield served
    finally:
        served.release()
        served.hang_up()
        served.server.should_exit = True
        served.thread.join(PATIENCE_S)
        assert not served.thread.is_alive()
        served.socket.close()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        return self.headers.get("connection") == "close"

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


class Client:
    """One connection."""

    def __init__(self, served: Served) -> None:
        self._socket = socket.create_connection(served.socket.getsockname())
        served.clients.append(self)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._began_s = time.monotonic()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def trickle(self, data: bytes, every_s: float) -> None:
        """Send byte by byte, for ever, until the connection is closed."""
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                self._socket.sendall(data)
                time.sleep(every_s)

    def close(self) -> None:
        self._socket.close()

    def answer(self, timeout_s: float = PATIENCE_S) -> Answer:
        """The next answer."""
        while not (match := re.match(rb"HTTP/1.1 (\d+) [^\r\n]*\r\n(.*?)\r\n\r\n", self._received, re.DOTALL)):
            self._receive(timeout_s)
        headers = dict(line.split(": ", 1) for line in match[2].decode().split("\r\n"))
        end = match.end() + int(headers["content-length"])
        while len(self._received) < end:
            self._receive(timeout_s)
        body, self._received = self._received[match.end() : end], self._received[end:]
        return Answer(int(match[1]), headers, body)

    def demand(self, data: bytes, timeout_s: float = PATIENCE_S) -> None:
        """Receive exactly this."""
        while len(self._received) < len(data):
            self._receive(timeout_s)
        assert self._received == data
        self._received = b""

    def closed_after_s(self, timeout_s: float = PATIENCE_S) -> float:
        """Demand that nothing more comes before the connection is closed; when that was, from the connection on."""
        assert self._received == b""
        self._socket.settimeout(timeout_s)
        with contextlib.suppress(ConnectionResetError):
            assert self._socket.recv(65536) == b""
        return time.monotonic() - self._began_s

    def is_open(self) -> bool:
        self._socket.settimeout(0.001)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return True
        except ConnectionResetError:
            return False
        self._received += data
        return bool(data)

    def _receive(self, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        data = self._socket.recv(65536)
        assert data, f"closed after {self._received!r}"
        self._received += data


def post(body: bytes, path: str = "/", *headers: str) -> bytes:
    return _request(path, [f"Content-Length: {len(body)}", *headers]) + body


def chunked(body: bytes, path: str = "/", *headers: str) -> bytes:
    """The body in two chunks, the first with an extension, and a trailer."""
    half = len(body) // 2
    chunks = b"%x;name=value\r\n%b\r\n%X\r\n%b\r\n" % (half, body[:half], len(body) - half, body[half:])
    return _request(path, ["Transfer-Encoding: chunked", *headers]) + chunks + b"0\r\nX-Trailer: 1\r\n\r\n"


def _request(path: str, headers: list[str]) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()
