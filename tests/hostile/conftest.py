"""What hostile clients meet: servers that take reports, each log of which is looked through when its test ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.system.conftest import Serve, make_server
from tests.system.server import Server

__all__ = ["make_server", "serve"]

TOKEN = "s3cret-t0ken-of-the-shippers"
MARK = "h0st1le"
"""Stands in what hostile clients send, so that no log may hold it unless it was escaped and is expected."""

_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd]")


def check_log(server: Server) -> None:
    """Nothing that a client sent may break a line of the log, and nothing of it is an error of the server's."""
    text = server.log.read_text(errors="surrogateescape")
    assert not _UNSAFE.search(text), text[-4000:]
    for line in text.splitlines():
        logged = json.loads(line)
        assert logged["level"] != "error", line
        assert logged["event"] not in {"request_failed", "library"}, line
        assert "Traceback" not in line
    assert TOKEN not in text
    assert MARK not in text


@pytest.fixture
def serve(make_server: Serve) -> Iterator[Serve]:
    """`serve(*flags)`: a server that takes reports; its log is checked at the end of the test."""
    made: list[Server] = []

    def serve(*flags: str) -> Server:
        server: Server = make_server(*flags).start()
        made.append(server)
        return server

    yield serve
    for server in made:
        check_log(server)
