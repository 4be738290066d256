"""Requests as bytes, and what comes back until the server closes."""

from __future__ import annotations

import re
import socket
import time
from typing import NamedTuple

from tests.hostile.conftest import MARK
from tests.system.server import Server

HEAD = b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Back(NamedTuple):
    """What came back on one connection."""

    data: bytes
    is_closed: bool
    took_s: float

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.data)]


def talk(
    server: Server, *parts: bytes, timeout_s: float = 5.0, half_close: bool = False, source: str = "127.0.0.1"
) -> Back:
    """Send, and read until the server closes or nothing came for ``timeout_s``."""
    start_s = time.monotonic()
    data = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout_s, (source, 0)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                data += more
        except TimeoutError:
            return Back(data, False, time.monotonic() - start_s)
        except OSError:
            pass
    return Back(data, True, time.monotonic() - start_s)


def report(name: str) -> bytes:
    return b'{"clientId":"%b","hosts":[],"mark":"%b"}' % (name.encode(), MARK.encode())


def post(body: bytes, header: bytes = b"") -> bytes:
    """One whole plain request."""
    return HEAD + header + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)
