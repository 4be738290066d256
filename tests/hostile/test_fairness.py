"""No client keeps another from being served, pages come before shippers, and no log repeats what a client sent."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.hostile.conftest import TOKEN
from tests.hostile.raw import HEAD, post, report, talk
from tests.system.conftest import Serve
from tests.system.server import MIB, Server, wait_until

KIB = 1024
OTHER = "127.0.0.2"


def hold(
    stack: contextlib.ExitStack, server: Server, size: int, header: bytes = b"", sent: int = 1000
) -> socket.socket:
    """Begin a body of ``size`` bytes and send no more of it than ``sent``."""
    connection = stack.enter_context(server.connect())
    connection.sendall(HEAD + header + b"Content-Length: %d\r\n\r\n" % size + b" " * sent)
    return connection


def posts(server: Server, name: str, source: str = OTHER, header: bytes = b"") -> list[int]:
    return talk(server, post(report(name), b"Connection: close\r\n" + header), source=source).statuses


@pytest.mark.parametrize("workers", [1, 4])
def test_slow_big_bodies_of_one_client_never_keep_another_from_being_served(serve: Serve, workers: int) -> None:
    server = serve("--workers", str(workers))
    assert wait_until(lambda: len(server.find("worker")) == workers, 5)
    with contextlib.ExitStack() as stack:
        for size in [
            20 * MIB,
            12 * MIB,
            8 * MIB,
            4 * MIB,
            2 * MIB,
            MIB,
            *[512 * KIB] * 8,
            *[64 * KIB] * 20,
            *[4 * KIB] * 20,
        ]:
            for _ in range(4 * workers):
                hold(stack, server, size)
        for number in range(10 * workers):
            assert posts(server, f"other {number}") == [200], number
    assert wait_until(lambda: posts(server, "the same", "127.0.0.1") == [200], 5)
    server.stop()


def test_shippers_never_fill_the_part_of_pages(serve: Serve) -> None:
    """Many shippers, each with a token: together they may fill all but the part of the pages."""
    names = [f"s{number}" for number in range(8)]
    tokens = ",".join(f"{name}:{TOKEN}-{name}" for name in [*names, "new"])
    server = serve("--workers", "1", "--tokens", tokens)
    with contextlib.ExitStack() as stack:
        for size in [8 * MIB, 4 * MIB, MIB, 256 * KIB, 64 * KIB, 16 * KIB, 4 * KIB, KIB]:
            for name in names:
                for _ in range(8):
                    hold(stack, server, size, b"Authorization: Bearer %b-%b\r\n" % (TOKEN.encode(), name.encode()), 500)
        # more than the room for those who hold little, from a sender that holds nothing
        large = report("x" * 100).replace(b'"mark"', b'"padding":"%b","mark"' % (b"x" * 900 * KIB))
        token = b"Connection: close\r\nAuthorization: Bearer %b-new\r\n" % TOKEN.encode()
        assert talk(server, post(large, token)).statuses == [503]
        for _ in range(10):
            assert talk(server, post(large, token + b"Origin: http://x\r\n")).statuses == [200]
    server.stop()


def test_no_token_and_nothing_a_client_sends_reaches_a_log(serve: Serve) -> None:
    server = serve("--workers", "1", "--tokens", f"shippers:{TOKEN}", "--allowed-origins", "*")
    body = report("\\u001b[31m\\n")
    wrong: list[bytes] = [
        b"Authorization: Bearer %b\xff\r\n" % TOKEN.encode(),
        b"Authorization: Basic %b\r\n" % TOKEN.encode(),
    ]
    for header in [
        *wrong,
        b"Origin: http://\xe9\r\n",
        b"X-Forwarded-For: \x1b[31m\r\n",
        b"Forwarded: for=%b\r\n" % TOKEN.encode(),
    ]:
        assert posts(server, "refused", header=header) in ([401], [400], [403]), header
    for query in (f"?token={TOKEN}%0a", f"?token={TOKEN}&token=%ff%00", f"?token=%1b[31m{TOKEN}", f"?{TOKEN}=%"):
        request = post(body).replace(b"/reports", b"/reports" + query.encode())
        assert set(talk(server, request, half_close=True).statuses) <= {200, 400, 401}
    for path in (b"/h0st1le%0a%1b[31m", b"/%ff%fe", b"/" + TOKEN.encode(), b"/api/v1/reports/" + TOKEN.encode()):
        request = b"POST " + path + post(body)[len(b"POST /api/v1/reports") :]
        assert talk(server, request, half_close=True).statuses == [404]
    assert posts(server, "taken", header=b"Authorization: Bearer %b\r\n" % TOKEN.encode()) == [200]
    server.stop()
