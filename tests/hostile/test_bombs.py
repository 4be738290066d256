"""FAULTS.md row 20: small bodies that become huge, or take long to become nothing, cost bounded memory and time."""

from __future__ import annotations

import functools
import gzip
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import zstandard

from tests.system.conftest import Serve
from tests.system.server import MIB, Answer, Server, report, wait_until

LONG = b"x" * 1024
GROWN_BYTES = 160 * MIB
"""In flight, each body's decoded pieces and their join, and what the allocator keeps."""


def gzip_zeros() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()


def zstd_rle(blocks: int, window_log: int) -> bytes:
    """Blocks that say "this byte 131072 times" in 4 bytes, under the window named."""
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    size = 128 * 1024
    return (
        header
        + ((size << 3) | 2).to_bytes(3, "little").join([b"", *[b"a"] * blocks])
        + ((1 << 3) | 3).to_bytes(3, "little")
        + b"a"
    )


def deflate_of_nothing(size: int) -> bytes:
    """Stored blocks of no bytes, to the last one: nothing comes out of it."""
    return b"\x00\x00\x00\xff\xff" * (size // 5) + b"\x01\x00\x00\xff\xff"


def bombs() -> dict[str, tuple[str, bytes]]:
    zeros = gzip_zeros()
    empty_gzip, empty_zstd = gzip.compress(b"", mtime=0), zstandard.compress(b"")
    return {
        "gzip of zeros": ("gzip", zeros),
        "gzip in gzip": ("gzip", gzip.compress(zeros)),
        "zlib of zeros": ("deflate", zlib.compress(bytes(64 * MIB))),
        "bare deflate of nothing": ("deflate", deflate_of_nothing(19 * MIB)),
        "zstd of zeros": ("zstd", zstandard.compress(bytes(64 * MIB))),
        "zstd of equal blocks": ("zstd", zstd_rle(100_000, 23)),
        "zstd with a window of 128 MiB": ("zstd", zstd_rle(1000, 27)),
        "zstd with a window of 2 GiB": ("zstd", zstd_rle(1000, 31)),
        "millions of empty members": ("gzip", empty_gzip * (19 * MIB // len(empty_gzip))),
        "millions of empty frames": ("zstd", empty_zstd * (19 * MIB // len(empty_zstd))),
        "millions of skipped frames": ("zstd", b"\x50\x2a\x4d\x18\0\0\0\0" * (19 * MIB // 8)),
        "a frame that skips 4 GiB": ("zstd", b"\x50\x2a\x4d\x18\xff\xff\xff\xff"),
        "many small bombs": ("gzip", gzip.compress(bytes(MIB), mtime=0) * 64),
        "many small frames": ("zstd", zstandard.compress(bytes(MIB)) * 64),
        "a report of open brackets": ("gzip", gzip.compress(b"[" * (15 * MIB))),
        "ten million commas": ("gzip", gzip.compress(b"[" + b"0," * (7 * MIB) + b"0]")),
        "a string of 15 MiB": ("gzip", gzip.compress(b'{"clientId":"' + b"a" * (15 * MIB) + b'"}')),
        "lines of nothing": ("gzip", gzip.compress(b"\n" * (15 * MIB))),
    }


@pytest.fixture(scope="module")
def all_bombs() -> dict[str, tuple[str, bytes]]:
    return bombs()


class Others:
    """A client that posts a small report again and again; how long each took, and what was not 200."""

    def __init__(self, server: Server) -> None:
        self.slowest_s = 0.0
        self.acked = 0
        self.wrong: list[Answer] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._post)

    def __enter__(self) -> Others:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _post(self) -> None:
        while not self._over.is_set():
            answer = self._server.post(report("other"))
            self.slowest_s = max(self.slowest_s, answer.took_s)
            self.acked += 1
            if answer.status != 200:
                self.wrong.append(answer)
            self._over.wait(0.01)


def peak(server: Server, until: Callable[[], bool]) -> Iterator[int]:
    """The resident bytes of the worker, until it is over."""
    worker = server.find_one("worker")
    while not until():
        yield worker.rss_bytes
        time.sleep(0.01)


def all_done(thrown: list[Future[Answer]]) -> bool:
    return all(one.done() for one in thrown)


def throw(server: Server, encoding: str, body: bytes, kind: str) -> Answer:
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    return server.ask("POST", "/api/v1/reports", body, headers, timeout_s=20)


def test_row_20_bombs_cost_bounded_memory_and_the_next_client_is_served_at_once(
    serve: Serve, all_bombs: dict[str, tuple[str, bytes]]
) -> None:
    server = serve("--workers", "1")
    for number in range(20):
        server.post(report(f"warm {number}"))
    worker = server.find_one("worker")
    before_bytes = worker.rss_bytes
    with Others(server) as others:
        for name, (encoding, body) in all_bombs.items():
            kind = "application/x-ndjson" if "line" in name else "application/json"
            with ThreadPoolExecutor(4) as pool:
                thrown = [pool.submit(throw, server, encoding, body, kind) for _ in range(4)]
                rss = max([*peak(server, functools.partial(all_done, thrown)), worker.rss_bytes])
            answers = [one.result() for one in thrown]
            assert {answer.status for answer in answers} <= {400, 413, 429, 503}, (name, answers)
            assert {400, 413} & {answer.status for answer in answers}, (name, answers)
            assert {answer.code for answer in answers if answer.status == 503} <= {"overloaded"}, (name, answers)
            assert rss - before_bytes < GROWN_BYTES, f"{name}: {(rss - before_bytes) / MIB:.0f} MiB more"
            assert others.slowest_s < 1, (name, others.slowest_s)
            assert max(answer.took_s for answer in answers) < 5, name
    assert worker.is_alive
    assert others.acked >= len(all_bombs)
    assert others.wrong == []
    server.stop()
    assert set(server.stored_clients()) == {"other", *(f"warm {number}" for number in range(20))}


@pytest.mark.parametrize(
    ("flags", "body", "status", "code"),
    [
        (["--max-body-bytes", "1MiB"], b" " * MIB + b"{}", 413, "body_too_large"),
        (["--max-body-bytes", "1MiB"], b"[" * (MIB + 1), 413, "body_too_large"),
        ([], b"[" * (2 * MIB), 400, "too_deep"),
        ([], b'{"a":' * MIB, 400, "report_too_large"),
        (["--max-reports", "3"], b'{"clientId":"a","hosts":[]}\n' * 4, 413, "too_many_reports"),
        (["--max-report-bytes", "1KiB"], b'{"clientId":"a","hosts":[],"x":"%b"}' % LONG, 400, "report_too_large"),
        ([], b'{"clientId":"a","hosts":[],"x":' + b"[" * 32 + b"]" * 32 + b"}", 400, "too_deep"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_chunked", [False, True])
def test_row_20_what_is_beyond_a_limit_is_refused_and_the_next_request_stored(
    serve: Serve, flags: list[str], body: bytes, status: int, code: str, is_chunked: bool
) -> None:
    server = serve("--workers", "1", *flags)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    header = {"Transfer-Encoding": "chunked"} if is_chunked else {}
    answer = server.ask("POST", "/api/v1/reports", sent, {"Content-Type": "application/json", **header})
    assert (answer.status, answer.code) == (status, code), answer
    assert server.post(report("next")).status == 200
    server.stop()
    assert server.stored_clients() == ["next"]


def test_an_error_never_repeats_a_long_name(serve: Serve) -> None:
    server = serve("--workers", "1")
    bad = b",".join(
        b'{"clientId":"a","hosts":[],"%b":{"x":[99999999999999999999]}}' % (b"k" * 500_000) for _ in range(20)
    )
    answer = server.ask("POST", "/api/v1/reports", b"[" + bad + b"]", {"Content-Type": "application/json"})
    assert (answer.status, answer.code) == (400, "no_valid_report")
    assert len(answer.body) < 100_000
    assert wait_until(lambda: server.post(report("next")).status == 200, 5)
