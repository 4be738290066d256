"""Connections spread over the workers, whoever is awake when they come."""

from __future__ import annotations

import contextlib
import re

from tests.system.conftest import Serve
from tests.system.server import read_answer, wait_until


def test_each_of_two_workers_gets_its_share_of_connections_that_come_at_once(serve: Serve) -> None:
    server = serve("--workers", "2")
    assert wait_until(lambda: len(server.find("worker")) == 2, 5)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(32)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            assert read_answer(client).status == 200
        text = server.ask("GET", "/metrics").body.decode()
    counts = [int(count) for count in re.findall(r"^netwatch_connections_open\{.*?\} (\d+)", text, re.MULTILINE)]
    assert len(counts) == 2
    assert min(counts) >= 10, counts
    server.stop()
