"""Connections spread over the workers, whoever is awake when they come."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.system.conftest import Serve
from tests.system.server import Server, read_answer, wait_until


def test_each_of_two_workers_gets_its_share_of_connections_that_come_at_once(serve: Serve) -> None:
    server = serve("--workers", "2")
    assert wait_until(lambda: len(server.find("worker")) == 2, 5)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(32)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            assert read_answer(client).status == 200
        counts = open_connections(server)
    assert len(counts) == 2
    assert min(counts) >= 10, counts
    server.stop()


def test_clients_that_wait_for_the_server_are_shared_out_too(make_server: Serve) -> None:
    """Those of a server that is started again: they keep their connections, so the first worker would keep them all."""
    server = make_server("--workers", "2")

    def come() -> socket.socket:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return server.connect()
            time.sleep(0.001)

    with ThreadPoolExecutor(32) as threads, contextlib.ExitStack() as stack:
        coming = [threads.submit(come) for _ in range(32)]
        server.start()
        for client in [stack.enter_context(one.result()) for one in coming]:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(client).status == 200
        counts = open_connections(server)
    assert len(counts) == 2
    assert min(counts) >= 10, counts
    server.stop()


def open_connections(server: Server) -> list[int]:
    """How many each worker has."""
    text = server.ask("GET", "/metrics").body.decode()
    return [int(count) for count in re.findall(r"^netwatch_connections_open\{.*?\} (\d+)", text, re.MULTILINE)]
