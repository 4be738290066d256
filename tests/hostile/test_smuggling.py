# ruff: noqa: E501 - tables
"""FAULTS.md rows 21 and 22: one request never becomes two reports, and half of one never becomes any."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import zstandard

from tests.hostile.conftest import check_log
from tests.hostile.raw import HEAD, chunk, post, report, talk
from tests.system.conftest import Serve
from tests.system.server import Server

INNER = post(report("inner"))
OUTER = report("outer")
LENGTH = b"Content-Length: %d\r\n" % len(OUTER)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
WHOLE = chunk(OUTER) + b"0\r\n\r\n"

REFUSED: dict[str, bytes] = {
    "CL and TE": HEAD + LENGTH + CHUNKED + b"\r\n" + WHOLE,
    "TE and CL": HEAD + CHUNKED + LENGTH + b"\r\n" + WHOLE,
    "CL 0 and TE": HEAD + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n" + WHOLE,
    "two CL": HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + OUTER,
    "two CL, the same": HEAD + LENGTH + LENGTH + b"\r\n" + OUTER,
    "CL list": HEAD + b"Content-Length: %d, %d\r\n\r\n" % (len(OUTER), len(OUTER)) + OUTER,
    "CL +": HEAD + b"Content-Length: +%d\r\n\r\n" % len(OUTER) + OUTER,
    "CL -1": HEAD + b"Content-Length: -1\r\n\r\n",
    "CL hex": HEAD + b"Content-Length: 0x%x\r\n\r\n" % len(OUTER) + OUTER,
    "CL empty": HEAD + b"Content-Length: \r\n\r\n" + OUTER,
    "CL with a space in it": HEAD + b"Content-Length: 1 0\r\n\r\n" + OUTER,
    "CL underscore": HEAD + b"Content-Length: 1_0\r\n\r\n" + OUTER,
    "CL beyond 64 bits": HEAD + b"Content-Length: 18446744073709551617\r\n\r\n" + OUTER,
    "CL in other digits": HEAD + "Content-Length: ٣\r\n\r\n".encode() + OUTER,
    "space before colon": HEAD + b"Content-Length : %d\r\n\r\n" % len(OUTER) + OUTER,
    "tab before colon": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n" + WHOLE,
    "header folded": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + WHOLE,
    "header folded after": HEAD + LENGTH + b"X: y\r\n " + CHUNKED + b"\r\n" + OUTER,
    "space before a header": HEAD + b" " + LENGTH + b"\r\n" + OUTER,
    "space before the first header": HEAD.replace(b"Host", b" Host") + LENGTH + b"\r\n" + OUTER,
    "TE unknown": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + WHOLE,
    "TE not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + WHOLE,
    "TE twice": HEAD + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + WHOLE,
    "TE in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n' + WHOLE,
    "TE vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + WHOLE,
    "TE NUL": HEAD + b"Transfer-Encoding: chunked\0\r\n\r\n" + WHOLE,
    "name with NUL": HEAD + b"Content-Length\0: 0\r\n\r\n" + OUTER,
    "no colon": HEAD + b"Content-Length\r\n\r\n" + OUTER,
    "empty name": HEAD + b": x\r\n" + LENGTH + b"\r\n" + OUTER,
    "bare LF": (HEAD + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + OUTER,
    "bare LF in one header": HEAD + b"X: y\n" + LENGTH + b"\r\n" + OUTER,
    "bare LF at the end": HEAD + LENGTH + b"\n" + OUTER,
    "bare CR in a value": HEAD + b"X: a\rContent-Length: 0\r\n" + LENGTH + b"\r\n" + OUTER,
    "bare CR at the end": HEAD + LENGTH + b"\r" + OUTER,
    "chunk size: no hex": HEAD + CHUNKED + b"\r\nzz\r\n" + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: negative": HEAD + CHUNKED + b"\r\n-1\r\n" + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: 0x": HEAD + CHUNKED + b"\r\n0x%x\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: plus": HEAD + CHUNKED + b"\r\n+%x\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: space before": HEAD + CHUNKED + b"\r\n %x\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: space after": HEAD + CHUNKED + b"\r\n%x \r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: beyond 64 bits": HEAD + CHUNKED + b"\r\n1000000000000000%x\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk size: empty": HEAD + CHUNKED + b"\r\n\r\n" + OUTER + b"\r\n0\r\n\r\n",
    "chunk ends with LF": HEAD + CHUNKED + b"\r\n%x\n%b\n0\n\n" % (len(OUTER), OUTER),
    "chunk longer than it says": HEAD + CHUNKED + b"\r\n%x\r\n" % (len(OUTER) - 5) + OUTER + b"\r\n0\r\n\r\n",
    "chunk without its end": HEAD + CHUNKED + b"\r\n%x\r\n" % len(OUTER) + OUTER + b"0\r\n\r\n",
    "chunk extension with CR": HEAD + CHUNKED + b"\r\n%x;a\rb\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "chunk extension with LF": HEAD + CHUNKED + b"\r\n%x;a\nb\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "HTTP/0.9": b"POST /api/v1/reports\r\n\r\n",
    "HTTP/1.2": HEAD.replace(b"1.1", b"1.2") + LENGTH + b"\r\n" + OUTER,
    "HTTP/2.0": HEAD.replace(b"1.1", b"2.0") + LENGTH + b"\r\n" + OUTER,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.1": HEAD.replace(b"HTTP", b"http") + LENGTH + b"\r\n" + OUTER,
    "method in lower case": HEAD.replace(b"POST", b"post") + LENGTH + b"\r\n" + OUTER,
    "method unknown": HEAD.replace(b"POST", b"SMUGGLE") + LENGTH + b"\r\n" + OUTER,
    "control character in the path": HEAD.replace(b"v1", b"v\x01") + LENGTH + b"\r\n" + OUTER,
    "escape sequence in the path": HEAD.replace(b"v1", b"v\x1b[31m") + LENGTH + b"\r\n" + OUTER,
    "not ASCII in the path": HEAD.replace(b"v1", b"v\xc3\xa9") + LENGTH + b"\r\n" + OUTER,
    "space in the path": HEAD.replace(b"v1", b"v 1") + LENGTH + b"\r\n" + OUTER,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "framing in a trailer": HEAD + CHUNKED + b"\r\n" + chunk(OUTER) + b"0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n",
    "a large header": HEAD + b"X: " + b"x" * 600_000 + b"\r\n" + LENGTH + b"\r\n" + OUTER,
    "a large name": HEAD + b"x" * 600_000 + b": y\r\n" + LENGTH + b"\r\n" + OUTER,
    "a large path": HEAD.replace(b"v1", b"v" * 600_000) + LENGTH + b"\r\n" + OUTER,
    "100 000 headers": HEAD + b"X: yyyy\r\n" * 100_000 + LENGTH + b"\r\n" + OUTER,
    "a large chunk extension": HEAD + CHUNKED + b"\r\n%x;" % len(OUTER) + b"x" * 600_000 + b"\r\n" + OUTER + b"\r\n0\r\n\r\n",
    "a large trailer": HEAD + CHUNKED + b"\r\n" + chunk(OUTER) + b"0\r\nX: " + b"x" * 600_000 + b"\r\n\r\n",
}  # fmt: skip

TAKEN: dict[str, bytes] = {
    "as it should be": HEAD + LENGTH + b"\r\n" + OUTER,
    "chunked": HEAD + CHUNKED + b"\r\n" + WHOLE,
    "chunked, other case": HEAD + b"TRANSFER-ENCODING: Chunked\r\n\r\n" + WHOLE,
    "chunk extension": HEAD + CHUNKED + b"\r\n%x;a=b\r\n" % len(OUTER) + OUTER + b"\r\n0\r\n\r\n",
    "leading zeros": HEAD + CHUNKED + b"\r\n000%x\r\n" % len(OUTER) + OUTER + b"\r\n000\r\n\r\n",
    "trailer": HEAD + CHUNKED + b"\r\n" + chunk(OUTER) + b"0\r\nX: y\r\nHost: z\r\n\r\n",
    "absolute URI": HEAD.replace(b"/api", b"http://other.example/api") + LENGTH + b"\r\n" + OUTER,
    "CRLF before": b"\r\n\r\n" + HEAD + LENGTH + b"\r\n" + OUTER,
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + OUTER,
    "upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"\r\n" + OUTER,
    "expect": HEAD + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n" + OUTER,
}


@pytest.mark.parametrize("is_split", [False, True])
def test_row_22_what_is_not_one_plain_request_stores_nothing_and_is_closed(serve: Serve, is_split: bool) -> None:
    server = serve("--workers", "1", "--header-timeout-s", "2")
    wrong = []
    for name, request in REFUSED.items():
        parts = [request[:-7], request[-7:], INNER] if is_split else [request + INNER]
        back = talk(server, *parts)
        if not back.is_closed or 200 in back.statuses or any(status >= 500 for status in back.statuses):
            wrong.append(f"{name}: {back}")
        if len(back.statuses) > 1:
            wrong.append(f"{name}: two answers, {back}")
    assert not wrong, "\n".join(wrong)
    server.stop()
    assert server.stored_clients() == []


def test_row_22_one_plain_request_stores_one_report_and_what_follows_it_another(serve: Serve) -> None:
    """A server that refuses everything would pass the test above."""
    server = serve("--workers", "1", "--header-timeout-s", "2")
    for name, request in TAKEN.items():
        back = talk(server, request, half_close=True)
        assert [status for status in back.statuses if status != 100] == [200], (name, back)
    server.stop()
    assert Counter(server.stored_clients()) == {"outer": len(TAKEN)}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_row_22_a_bad_request_behind_a_good_one_costs_only_itself(
    name: str, shared_port: Callable[[bytes], list[int]]
) -> None:
    statuses = shared_port(post(report("first")) + REFUSED[name] + INNER)
    assert statuses[0] == 200, statuses
    assert statuses[1:] in ([], [400]), statuses


@pytest.fixture(scope="module")
def shared_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], list[int]]]:
    """Talks to one server for all bad requests behind a good one, and counts what it stored at the end."""
    path = tmp_path_factory.mktemp("pipelined")
    server = Server(path / "data", path / "log", "--workers", "1", "--header-timeout-s", "2")
    asked = 0

    def ask(request: bytes) -> list[int]:
        nonlocal asked
        asked += 1
        back = talk(server, request)
        assert back.is_closed
        return back.statuses

    server.start()
    try:
        yield ask
        server.stop()
        assert Counter(server.stored_clients()) == {"first": asked}
        check_log(server)
    finally:
        server.end()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_row_21_an_encoded_body_cut_at_any_offset_is_never_stored(serve: Serve, encoding: str) -> None:
    server = serve("--workers", "1")
    body = b"".join(report(f"cut {number}") + b"\n" for number in range(3))
    whole = ENCODERS[encoding](body)
    head = HEAD.replace(b"application/json", b"application/x-ndjson") + b"Content-Encoding: %b\r\n" % encoding.encode()
    for offset in range(len(whole)):
        cut = whole[:offset]
        promised = talk(server, head + b"Content-Length: %d\r\n\r\n" % len(whole) + cut, half_close=True)
        assert 200 not in promised.statuses, offset
        kept = talk(server, head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % offset + cut)
        assert kept.statuses == [400], (offset, kept)
        chunked = talk(
            server, head + CHUNKED + b"Connection: close\r\n\r\n" + (chunk(cut) if cut else b"") + b"0\r\n\r\n"
        )
        assert chunked.statuses == [400], (offset, chunked)
        torn = talk(server, head + CHUNKED + b"\r\n" + (chunk(cut) if cut else b""), half_close=True)
        assert 200 not in torn.statuses, offset
    for garbage in (whole + b"\0", whole + whole[:-1], b"\0" + whole, whole + body):
        back = talk(server, head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(garbage) + garbage)
        assert back.statuses == [400], back
    back = talk(server, head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole)
    assert back.statuses == [200]
    server.stop()
    assert server.stored_clients() == ["cut 0", "cut 1", "cut 2"]
