"""A real HTTP gateway before the store, which does to requests what networks, proxies and stores do."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Request(NamedTuple):
    """One request, as it came."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.partition(b" ")[0].decode()


Forward = Callable[[Request], bytes]
Fault = Callable[[Request, Forward], bytes]
"""Makes the answer to a request, which it may forward; no bytes cut the connection."""


class Gateway:
    """Listens at ``endpoint``, forwards to the store's ``port``, and notes the methods of all ``requests``."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._faults: list[tuple[str, Fault, int]] = []
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, method: str, fault: Fault, times: int = 1) -> None:
        """Do this to the next requests of that method, or of any (``*``)."""
        self._faults.append((method, fault, times))

    def forget(self) -> None:
        """Do nothing more than forward."""
        self._faults.clear()

    def close(self) -> None:
        self.closed.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                if not (piece := connection.recv(65536)):
                    return
                received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
            while len(body) < (int(length[1]) if length else 0):
                if not (piece := connection.recv(65536)):
                    return
                body += piece
            request = Request(head, body)
            fault = self._fault(request.method)
            connection.sendall(fault(request, self._forward))

    def _fault(self, method: str) -> Fault:
        with self._lock:
            self.requests.append(method)
            for position, (planned, fault, times) in enumerate(self._faults):
                if planned in (method, "*"):
                    self._faults[position : position + 1] = [(planned, fault, times - 1)] * (times > 1)
                    return fault
        return lambda request, forward: forward(request)

    def _forward(self, request: Request) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port), timeout=20) as store:
            store.sendall(request.head + b"\r\nConnection: close\r\n\r\n" + request.body)
            answer = b""
            while piece := store.recv(65536):
                answer += piece
        return answer


def says(status: str, code: str) -> Fault:
    """The request goes nowhere, and this is the answer: ``503 Service Unavailable``, ``SlowDown``."""
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return lambda request, _forward: head.encode() + b"\r\n" + (b"" if request.method == "HEAD" else body)


def flips_a_byte(request: Request, forward: Forward) -> bytes:
    """On the way to the store."""
    middle = len(request.body) // 2
    flipped = request.body[:middle] + bytes([request.body[middle] ^ 1]) + request.body[middle + 1 :]
    return forward(request._replace(body=flipped))


def stores_and_says(status: str, code: str) -> Fault:
    """The store has it, and the answer is another."""

    def fault(request: Request, forward: Forward) -> bytes:
        forward(request)
        return says(status, code)(request, forward)

    return fault


def cuts(_request: Request, _forward: Forward) -> bytes:
    """Nothing goes on, and nothing comes back."""
    return b""


def stores_and_cuts(request: Request, forward: Forward) -> bytes:
    """The store has it, and nobody hears of it."""
    forward(request)
    return b""


def waits(seconds: float, fault: Fault = lambda request, forward: forward(request)) -> Fault:
    """The request is held up so long first."""

    def waiting(request: Request, forward: Forward) -> bytes:
        time.sleep(seconds)
        return fault(request, forward)

    return waiting


def stores_and_waits(seconds: float) -> Fault:
    """The store has it, and the answer comes late."""

    def fault(request: Request, forward: Forward) -> bytes:
        answer = forward(request)
        time.sleep(seconds)
        return answer

    return fault


@contextlib.contextmanager
def gateway(port: int) -> Iterator[Gateway]:
    """One that is closed at the end."""
    opened = Gateway(port)
    try:
        yield opened
    finally:
        opened.close()
