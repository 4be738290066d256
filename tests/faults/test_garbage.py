"""FAULTS.md row 23: a process of the same user sends garbage to the writer's socket while clients are served."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from tests.faults.clients import Clients
from tests.faults.processes import descriptors_total, queue_path
from tests.system.conftest import Serve
from tests.system.server import GIVE_UP_S, wait_until
from tests.wire import RESEND, batch, hello, make_lines

Thinned = Callable[[int, int, str], None]


def garbage(chance: random.Random) -> bytes:
    """Anything but a batch whose lines look whole at both ends: those the writer takes, as a worker's."""
    lines = make_lines(2)
    frame = bytearray(hello(chance.randbytes(16)) + batch(1, b"".join(lines)))
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 3000))
    if kind == 1:  # it introduces itself well
        return bytes(frame[:20]) + chance.randbytes(chance.randrange(1, 3000))
    if kind == 2:  # it dies in the middle
        return bytes(frame[: chance.randrange(len(frame))])
    if kind == 3:  # the size is wrong, from none to 4 GiB
        frame[20:24] = chance.choice([bytes(4), b"\xff" * 4, chance.randbytes(4)])
        return bytes(frame[:-1])
    if kind == 4:  # a resend, whose lines are looked at one by one
        frame[40] |= RESEND
        frame[41 + chance.randrange(len(frame) - 41)] ^= 1 << chance.randrange(8)
        return bytes(frame)
    return bytes(frame) + chance.randbytes(chance.randrange(1, 100))  # more than one may send before the answer


def test_row_23_garbage_on_the_writers_socket_closes_that_link_only(
    serve: Serve, full_sweeps: bool, thinned: Thinned
) -> None:
    total = 20_000 if full_sweeps else 1500
    thinned(20_000, total, "garbage on the socket of a running server")
    server = serve("--workers", "2", "--seal-bytes", "64KiB")
    assert wait_until(lambda: len(server.find("worker")) == 2, GIVE_UP_S)
    before = server.processes()
    writer = server.find_one("writer")
    descriptors = descriptors_total(writer)
    path = queue_path(writer)
    chance = random.Random(23)
    stuck: list[socket.socket] = []
    with Clients(server) as clients:
        clients.wait_acked(10)
        for _ in range(total):
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(GIVE_UP_S)
            link.connect(path)
            try:
                link.sendall(garbage(chance))
            except (BrokenPipeError, ConnectionResetError):
                pass  # closed before all of it was sent
            if len(stuck) < 50:
                stuck.append(link)  # says nothing more, and does not hang up
            else:
                link.close()
        clients.wait_acked(50)
        for link in stuck:
            link.close()
    assert clients.statuses.keys() == {200}, clients.statuses
    assert max(clients.took_s[200]) < 4, "nobody waited for a deadline"
    assert server.processes() == before, "a process was replaced"
    assert wait_until(lambda: descriptors_total(writer) < descriptors + 10, GIVE_UP_S)
    server.stop()
    lost = clients.lost(line for line in server.stored() if not line["report"]["clientId"].startswith("client-"))
    assert lost == []
