"""FAULTS.md rows 19, 21 and 22 over raw sockets: bodies cut short, slow clients, chunks, pipelines, 100-continue."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.system.conftest import Serve
from tests.system.server import Answer, Server, read_answer, report, wait_until

NDJSON = b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
JSON = b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks, with the last one."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


def post(server: Server, client: str) -> Answer:
    with server.connect() as connection:
        body = json.dumps(report(client)).encode()
        connection.sendall(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return read_answer(connection)


def lines(name: str) -> bytes:
    """NDJSON of three reports, each line of which is valid by itself: a cut one must not be taken for a shorter one."""
    return b"".join(b'{"clientId":"%b %d","hosts":[]}\n' % (name.encode(), number) for number in range(3))


@pytest.mark.parametrize("ending", ["close", "reset", "half-close"])
@pytest.mark.parametrize("kind", ["Content-Length", "chunked"])
def test_row_21_a_body_cut_at_any_offset_is_never_stored(
    serve: Serve, kind: str, ending: str, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    server = serve("--workers", "1")
    body = lines("cut")
    if kind == "chunked":
        request, whole = NDJSON + b"Transfer-Encoding: chunked\r\n\r\n", chunked(body, 20)
    else:
        request, whole = NDJSON + b"Content-Length: %d\r\n\r\n" % len(body), body
    offsets = range(len(whole))
    step = 1 if full_sweeps else 3
    thinned(len(offsets), len(offsets[::step]), f"offsets at which a body is cut ({kind}, {ending})")
    # The last two bytes of the last chunk are its empty trailer: without them the request is not whole either.
    for offset in sorted({*offsets[::step], *offsets[-8:]}):
        with server.connect() as connection:
            connection.sendall(request + whole[:offset])
            if ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif ending == "half-close":
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                while data := connection.recv(65536):
                    answer += data
                assert not answer.startswith(b"HTTP/1.1 200")
    with server.connect() as connection:
        connection.sendall(request + whole)
        assert read_answer(connection).json["accepted"] == 3
    server.stop()
    assert server.stored_clients() == ["cut 0", "cut 1", "cut 2"]
    assert [event for event in server.logged() if event["level"] == "error"] == []


def test_chunked_bodies_of_every_chunk_size_are_stored(serve: Serve) -> None:
    server = serve("--workers", "1")
    sizes = [1, 2, 7, 20, 1000]
    for size in sizes:
        with server.connect() as connection:
            connection.sendall(NDJSON + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(lines(f"{size}"), size))
            assert read_answer(connection).json["accepted"] == 3
    server.stop()
    assert server.stored_clients() == sorted(f"{size} {number}" for size in sizes for number in range(3))


def test_a_request_that_comes_byte_by_byte_is_stored(serve: Serve) -> None:
    server = serve("--workers", "1")
    body = b'{"clientId":"slow","hosts":[]}'
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body:
            connection.sendall(bytes([byte]))
        assert read_answer(connection).status == 200
    server.stop()
    assert server.stored_clients() == ["slow"]


def test_expect_100_continue_is_answered_before_the_body(serve: Serve) -> None:
    server = serve("--workers", "1")
    body = b'{"clientId":"asked first","hosts":[]}'
    head = JSON + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head % len(body))
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection).status == 200
    server.stop()
    assert server.stored_clients() == ["asked first"]


@pytest.mark.parametrize(
    ("start", "header", "status"),
    [
        (b"POST /api/v1/reports", b"Content-Length: 999999999\r\n", 413),
        (b"POST /api/v1/reports", b"Content-Length: 9\r\nOrigin: http://another.example\r\n", 403),
        (b"POST /api/v1/reports", b"Content-Length: 9\r\nContent-Encoding: br\r\n", 415),
        (b"POST /api/v1/report", b"Content-Length: 9\r\n", 404),
        (b"PUT /api/v1/reports", b"Content-Length: 9\r\n", 405),
        (b"POST /api/v1/reports", b"Content-Length: 999999999\r\nTransfer-Encoding: chunked\r\n", 400),
    ],
)
def test_what_is_refused_by_its_header_is_refused_before_100_continue(
    serve: Serve, start: bytes, header: bytes, status: int
) -> None:
    server = serve("--workers", "1")
    body = b'{"clientId":"next","hosts":[]}'
    with server.connect() as connection:
        connection.sendall(start + JSON[JSON.index(b" HTTP") :] + b"Expect: 100-continue\r\n" + header + b"\r\n")
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert connection.recv(1) == b""
    with server.connect() as connection:  # one that does not wait keeps its connection
        sent = JSON + b"Expect: 100-continue\r\nContent-Encoding: br\r\nContent-Length: 9\r\n\r\n" + b"x" * 9
        connection.sendall(sent + JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert [read_answer(connection).status for _ in range(2)] == [415, 200]
    server.stop()
    assert server.stored_clients() == ["next"]


def test_row_22_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    server = serve("--workers", "1")
    kinds = [b'{"clientId":"first","hosts":[]}', b"{", lines("batch").rstrip(), b'{"clientId":"last","hosts":[]}']
    requests = b"".join(
        (NDJSON if b"\n" in body else JSON) + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in kinds
    )
    with server.connect() as connection:
        connection.sendall(requests)
        answers = [read_answer(connection) for _ in kinds]
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    assert [answer.json["accepted"] for answer in answers if answer.status == 200] == [1, 3, 1]
    server.stop()
    stored = {line["id"]: line["report"]["clientId"] for line in server.stored()}
    assert sorted(stored.values()) == ["batch 0", "batch 1", "batch 2", "first", "last"]
    assert [stored[answer.json["id"]] for answer in answers if answer.status == 200] == ["first", "batch 0", "last"]


def test_row_22_a_pipelined_chunked_body_that_is_cut_is_not_stored(serve: Serve) -> None:
    """The whole one before it must not vouch for it."""
    server = serve("--workers", "1")
    head = NDJSON + b"Transfer-Encoding: chunked\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head + chunked(lines("whole"), 50) + head + chunked(lines("cut"), 20)[:-5])
        assert read_answer(connection).json["accepted"] == 3
    server.stop()
    assert server.stored_clients() == ["whole 0", "whole 1", "whole 2"]


SMUGGLED = b'POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\n\r\n{"clientId":"smuggled","hosts":[]}'


AMBIGUOUS = [
    JSON + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    JSON + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
    JSON + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    JSON + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    JSON + b"Content-Length : 0\r\n\r\n" + SMUGGLED,
]


def test_row_22_an_ambiguous_request_never_lets_a_second_one_through(serve: Serve) -> None:
    server = serve("--workers", "1")
    for request in AMBIGUOUS:
        with server.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
        assert b" 200 " not in answer, request
    server.stop()
    assert server.stored() == []


@pytest.mark.timeout(60)
def test_row_19_a_stalled_header_is_closed_at_its_deadline_and_others_notice_nothing(serve: Serve) -> None:
    """A connection that says nothing, one that says half a header, one that adds a byte a second: 10 s."""
    server = serve("--workers", "1")
    ended: dict[str, float] = {}
    start_s = time.monotonic()

    def stall(name: str, first: bytes, every_s: float | None) -> None:
        with server.connect(20) as connection:
            connection.sendall(first)
            connection.settimeout(every_s or 20)
            while True:
                try:
                    connection.recv(1)
                except TimeoutError:
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        break
                    continue
                except OSError:
                    break
                break
        ended[name] = time.monotonic() - start_s

    def keep_alive_and_half() -> None:
        body = b'{"clientId":"kept alive","hosts":[]}'
        with server.connect(20) as connection:
            connection.sendall(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert read_answer(connection).status == 200
            connection.sendall(JSON)
            try:
                connection.recv(1)
            except OSError:
                pass
        ended["after a request"] = time.monotonic() - start_s

    threads = [
        threading.Thread(target=stall, args=("silent", b"", None)),
        threading.Thread(target=stall, args=("half", JSON, None)),
        threading.Thread(target=stall, args=("slow", JSON + b"X: ", 1.0)),
        threading.Thread(target=keep_alive_and_half),
    ]
    for thread in threads:
        thread.start()
    slowest_s = 0.0
    while any(thread.is_alive() for thread in threads):
        slowest_s = max(slowest_s, post(server, "other").took_s)
    for thread in threads:
        thread.join()
    assert set(ended) == {"silent", "half", "slow", "after a request"}
    assert all(9 < took_s < 12.5 for took_s in ended.values()), ended
    assert slowest_s < 0.5


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_row_19_a_stalled_body_is_closed_at_its_deadline(serve: Serve) -> None:
    server = serve("--workers", "1")
    with server.connect(100) as connection:
        start_s = time.monotonic()
        connection.sendall(JSON + b"Content-Length: 100\r\n\r\n{")
        connection.settimeout(1)
        while True:
            try:
                assert connection.recv(1) == b""
                break
            except TimeoutError:
                connection.sendall(b" " if time.monotonic() - start_s < 50 else b"")
            except OSError:
                break
        assert 60 < time.monotonic() - start_s < 75
    assert wait_until(lambda: post(server, "after").status == 200, 5)
    server.stop()
    assert server.stored_clients() == ["after"]


def test_a_client_that_sends_no_more_is_still_answered(serve: Serve) -> None:
    server = serve("--workers", "1")
    for number in range(5):
        body = json.dumps(report(f"half-closed {number}")).encode()
        with server.connect() as connection:
            connection.sendall(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            connection.shutdown(socket.SHUT_WR)
            assert read_answer(connection).status == 200
            assert connection.recv(1) == b""
