"""The acceptor on real sockets: who takes a connection, and that none waits long for its turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from netwatch.http.acceptor import Acceptor

WAIT_S = 0.005


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        yield sock


class Taken(asyncio.Protocol):
    """Notes its connection in ``taken``, and when it was made."""

    def __init__(self, taken: list[tuple[float, asyncio.Transport]]) -> None:
        self._taken = taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._taken.append((time.monotonic(), transport))


def accept(listener: socket.socket, clients: int, *want: Callable[[list[int]], int]) -> tuple[list[int], float]:
    """How many of the connections each acceptor took, given how many each wants, and how long that took."""

    async def scenario() -> tuple[list[int], float]:
        taken: list[list[tuple[float, asyncio.Transport]]] = [[] for _ in want]

        def acceptor(number: int, own: socket.socket) -> Acceptor:
            return Acceptor(
                own,
                lambda: Taken(taken[number]),
                None,
                lambda: want[number]([len(own) for own in taken]),
                handshake_timeout_s=1.0,
                max_handshakes=100,
            )

        start_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(listener.dup()) for _ in want]
            acceptors = [acceptor(number, own) for number, own in enumerate(listeners)]
            for _ in range(clients):
                stack.enter_context(socket.create_connection(listener.getsockname()))
            while sum(map(len, taken)) < clients:
                assert time.monotonic() < start_s + 10
                await asyncio.sleep(0.001)
            for one in acceptors:
                one.close()
                await one.wait_closed()
        for _, transport in itertools.chain(*taken):
            transport.close()
        await asyncio.sleep(0)
        return [len(own) for own in taken], max(at_s for own in taken for at_s, _ in own) - start_s

    return asyncio.run(scenario())


def test_one_that_has_its_share_leaves_connections_to_the_other(listener: socket.socket) -> None:
    counts, _ = accept(listener, 40, lambda counts: counts[0] <= counts[1], lambda counts: counts[1] <= counts[0])
    assert abs(counts[0] - counts[1]) <= 2


def test_what_nobody_else_takes_is_taken_all_the_same(listener: socket.socket) -> None:
    counts, took_s = accept(listener, 10, lambda _: 0)
    assert counts == [10]
    assert took_s > 10 * WAIT_S


def test_as_many_as_it_lacks_are_taken_at_once(listener: socket.socket) -> None:
    counts, took_s = accept(listener, 60, lambda counts: 30 - counts[0], lambda counts: 30 - counts[1])
    assert counts == [30, 30]
    assert took_s < 10 * WAIT_S


def test_nothing_is_taken_after_the_close(listener: socket.socket) -> None:
    async def scenario() -> int:
        taken: list[tuple[float, asyncio.Transport]] = []
        acceptor = Acceptor(
            listener, lambda: Taken(taken), None, lambda: 0, handshake_timeout_s=1.0, max_handshakes=100
        )
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0)
            acceptor.close()
            await acceptor.wait_closed()
            await asyncio.sleep(4 * WAIT_S)
        return len(taken)

    assert asyncio.run(scenario()) == 0
