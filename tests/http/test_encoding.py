from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import falcon.testing
import pytest
import zstandard

from netwatch.errors import Refused
from netwatch.http import encoding, ingest
from netwatch.http.in_flight import InFlight
from netwatch.metrics.board import Meter
from tests.http.door import PATH, REPORT, Door, Exchange, code_of, problem_of, report

KIB = 1024
MIB = 1024 * KIB


def bare(body: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compress.compress(body) + compress.flush()


def zstd_streamed(body: bytes) -> bytes:
    """As a sender that does not know its size: no content size in the header."""
    compress = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compress.compress(body) + compress.flush()


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip of two members": ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "gzip with an empty member": ("gzip", lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b"")),
    "x-gzip": ("x-gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare),
    "stored deflate": ("deflate", lambda body: zlib.compress(body, 0)),
    "zstd": ("zstd", zstd),
    "zstd streamed": ("zstd", zstd_streamed),
    "zstd of two frames": ("zstd", lambda body: zstd(body[:9]) + zstd_streamed(body[9:])),
    "zstd with an empty frame": ("zstd", lambda body: zstd(b"") + zstd(body) + zstd(b"")),
}


@pytest.fixture(autouse=True)
def in_flight(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[InFlight]]:
    """The counters that doors make; whatever was answered, all bytes must have been given back."""
    made: list[InFlight] = []

    class Counted(InFlight):
        def __init__(self, limit_bytes: int, reserved_bytes: int, meter: Meter) -> None:
            super().__init__(limit_bytes, reserved_bytes, meter)
            self.most_bytes = 0
            made.append(self)

        def take(self, client: str, size: int, *, is_page: bool) -> None:
            super().take(client, size, is_page=is_page)
            self.most_bytes = max(self.most_bytes, self.bytes)

    monkeypatch.setattr(ingest, "InFlight", Counted)
    yield made
    assert [counter.bytes for counter in made] == [0] * len(made)


def post(door: Door, body: bytes, header: str, **options: Any) -> falcon.testing.Result:
    return door.post(body, headers={"content-encoding": header}, **options)


# What is taken


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("count", [1, 2000])
def test_an_encoded_body_is_the_same_as_a_plain_one(name: str, count: int) -> None:
    header, encode = ENCODERS[name]
    door = Door()
    sent = b"\n".join(report(number) for number in range(count))
    result = post(door, encode(sent), header, kind="application/x-ndjson")
    assert (result.status_code, result.json["accepted"]) == (200, count)
    assert door.link.reports == [json.loads(report(number)) for number in range(count)]


@pytest.mark.parametrize("header", ["GZIP", " gzip ", "X-GZip"])
def test_the_name_of_an_encoding_has_no_case(header: str) -> None:
    assert post(Door(), gzip.compress(REPORT), header).status_code == 200


@pytest.mark.parametrize("header", ["identity", "Identity"])
def test_identity_is_no_encoding(header: str) -> None:
    assert post(Door(), REPORT, header).status_code == 200


def test_a_chunked_body_may_be_encoded() -> None:
    sent = gzip.compress(REPORT)
    exchange = Exchange(Door(), [sent[:5], sent[5:]], headers={"content-encoding": "gzip"})
    assert asyncio.run(exchange.run())["accepted"] == 1


def test_browser_reports_may_be_encoded() -> None:
    door = Door()
    headers = {"content-encoding": "gzip", "content-type": "application/reports+json"}
    body = gzip.compress(b'[{"type":"crash","body":{}}]')
    assert door.request("POST", "/api/v1/browser-reports", body=body, headers=headers).status_code == 204
    assert len(door.link.stored) == 1


@pytest.mark.parametrize(
    "header", ["br", "snappy", "lz4", "compress", "gzip, gzip", "gzip,zstd", "", "aws-chunked", "*"]
)
def test_another_encoding_is_415_with_what_is_taken(header: str) -> None:
    door = Door()
    result = post(door, gzip.compress(REPORT), header)
    if not header:  # an empty header says nothing
        assert (result.status_code, code_of(result)) == (400, "invalid_json")
        return
    assert (result.status_code, code_of(result)) == (415, "unsupported_encoding")
    assert problem_of(result)["taken"] == ["gzip", "zstd", "deflate", "identity"]
    assert door.link.stored == []


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_body_is_empty_encoded_too(name: str) -> None:
    header, encode = ENCODERS[name]
    assert code_of(post(Door(), encode(b""), header)) == "empty_body"
    assert code_of(post(Door(), b"", header)) == "empty_body"


# What is broken


@pytest.mark.parametrize("name", ENCODERS)
def test_row_21_a_stream_cut_anywhere_is_400(name: str) -> None:
    header, encode = ENCODERS[name]
    door = Door()
    sent = encode(REPORT)
    starts = {sum(map(len, parts)) for parts in whole_parts(name)}
    for end in set(range(1, len(sent))) - starts:  # cut there, it would be a whole stream that holds less
        result = post(door, sent[:end], header)
        assert (result.status_code, code_of(result)) == (400, "invalid_encoding"), end
    assert door.link.stored == []


def whole_parts(name: str) -> list[list[bytes]]:
    """The beginnings of the encoded REPORT that are whole streams themselves."""
    if "two" in name or "empty" in name:
        encode = gzip.compress if name.startswith("gzip") else zstd
        first = REPORT[:9] if "two" in name else b""
        parts = [encode(first)]
        return [parts] if "two" in name else [parts, [*parts, encode(REPORT)]]
    return []


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("garbage", [b"\0", b"x", b"\0" * 20, b"\x1f", b"\x1f\x8b", b"(", b"(\xb5/\xfd", REPORT])
def test_a_stream_with_anything_after_it_is_400(name: str, garbage: bytes) -> None:
    header, encode = ENCODERS[name]
    door = Door()
    result = post(door, encode(REPORT) + garbage, header)
    assert (result.status_code, code_of(result)) == (400, "invalid_encoding")
    assert door.link.stored == []


@pytest.mark.parametrize("name", ["gzip", "zlib", "zstd", "zstd streamed"])
def test_a_flipped_bit_is_400_or_nobody_sees_it(name: str) -> None:
    header, encode = ENCODERS[name]
    sent = encode(REPORT)
    for position in range(len(sent)):
        door = Door()
        flipped = bytearray(sent)
        flipped[position] ^= 0x10
        result = post(door, bytes(flipped), header)
        if result.status_code == 200:  # in the time or the system of gzip's header
            assert door.link.reports == [json.loads(REPORT)], position
        else:
            assert (result.status_code, len(door.link.stored)) == (400, 0), position


@pytest.mark.parametrize("header", ["gzip", "zstd", "deflate"])
def test_what_is_not_encoded_is_400(header: str) -> None:
    assert code_of(post(Door(), REPORT, header)) == "invalid_encoding"


def test_a_stream_that_needs_a_dictionary_is_400() -> None:
    compress = zlib.compressobj(zdict=b"clientId")
    sent = compress.compress(REPORT) + compress.flush()
    assert code_of(post(Door(), sent, "deflate")) == "invalid_encoding"
    dictionary = zstandard.ZstdCompressionDict(b"clientId" * 8)
    sent = zstandard.ZstdCompressor(dict_data=dictionary).compress(REPORT * 9)
    assert post(Door(), sent, "zstd").status_code == 400


# Bombs

BOMBS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "gzip": ("gzip", lambda size: gzip.compress(b"[" + b" " * (size - 2) + b"]")),
    "gzip of many members": ("gzip", lambda size: gzip.compress(b" " * MIB) * (size // MIB)),
    "zlib": ("deflate", lambda size: zlib.compress(b"[" + b" " * (size - 2) + b"]")),
    "bare deflate": ("deflate", lambda size: bare(b"[" + b" " * (size - 2) + b"]")),
    "zstd": ("zstd", lambda size: zstd(b"[" + b" " * (size - 2) + b"]")),
    "zstd streamed": ("zstd", lambda size: zstd_streamed(b"[" + b" " * (size - 2) + b"]")),
    "zstd of many frames": ("zstd", lambda size: zstd_streamed(b" " * MIB) * (size // MIB)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_row_20_a_bomb_is_413_before_it_has_grown(name: str, in_flight: list[Any]) -> None:
    header, make = BOMBS[name]
    door = Door()
    sent = make(200 * MIB)
    result = post(door, sent, header)
    assert (result.status_code, code_of(result)) == (413, "body_too_large")
    assert in_flight[0].most_bytes - len(sent) < MIB
    assert door.link.stored == []


@pytest.mark.parametrize(
    "name", [name for name in ENCODERS if name != "stored deflate"]
)  # which is larger than what it holds
def test_the_decoded_size_is_bounded_to_the_byte(name: str) -> None:
    header, encode = ENCODERS[name]
    door = Door(max_body_bytes=2 * KIB)
    assert post(door, encode(REPORT.ljust(2 * KIB)), header).status_code == 200
    result = post(door, encode(REPORT.ljust(2 * KIB + 1)), header)
    assert (result.status_code, code_of(result), problem_of(result)["limit"]) == (413, "body_too_large", 2 * KIB)


def test_a_ratio_beyond_the_bound_is_413_even_where_the_size_is_not() -> None:
    for make in (gzip.compress, zstd):
        header = "gzip" if make is gzip.compress else "zstd"
        few = post(Door(), make(REPORT.ljust(256 * KIB)), header)
        assert few.status_code == 200
        many = post(Door(), make(REPORT.ljust(3 * MIB)), header)
        assert (many.status_code, problem_of(many)["limit"]) == (413, encoding.MAX_RATIO[header])


def backlog(reports: int, samples: int) -> bytes:
    """What an agent sends after an outage: in each report its last samples, all of which failed; indented."""

    def host(number: int, at: int) -> dict[str, Any]:
        history = [
            {"t": 1767225600000 + t * 1000, "latency": None, "error": "timeout"} for t in range(at, at + samples)
        ]
        return {"name": f"h{number}", "url": f"https://h{number}/", "status": "offline", "history": history}

    return b"\n".join(
        json.dumps({"clientId": "agent-7", "hosts": [host(number, at) for number in range(10)]}, indent=1).encode()
        for at in range(reports)
    )


@pytest.mark.parametrize(
    ("name", "reached"), [("gzip", 40), ("gzip of many members", 40), ("zstd", 600), ("zstd streamed", 500)]
)
def test_honest_bodies_that_compress_well_are_taken_whole_and_where_only_their_beginning_does(
    name: str, reached: int
) -> None:
    header, make = ENCODERS.get(name, ("gzip", gzip_members))
    quiet = backlog(100, 60)
    assert len(quiet) > 4 * MIB
    sent = make(quiet)
    assert len(quiet) / len(sent) > reached
    assert post(Door(), sent, header).json["accepted"] == 100
    mixed = backlog(20, 60) + b"\n".join(report(number) for number in range(9000))
    assert post(Door(), make(mixed), header).json["accepted"] == 9020
    equal = b"\n".join([report(0)[:-1] + b',"x":"%b"}' % (b"a note that is the same each time " * 4)] * 9000)
    if header == "gzip":
        assert post(Door(), make(equal), header).json["accepted"] == 9000


def gzip_members(body: bytes) -> bytes:
    return b"".join(gzip.compress(body[start : start + 64 * KIB]) for start in range(0, len(body), 64 * KIB))


def window_of(log: int, body: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log)
    compress = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compress.compress(body) + compress.flush()


def test_a_window_as_large_as_the_standard_asks_for_is_taken_and_no_larger() -> None:
    assert encoding.MAX_WINDOW_BYTES == 1 << 23
    assert post(Door(), window_of(23, REPORT), "zstd").status_code == 200
    assert code_of(post(Door(), window_of(24, REPORT), "zstd")) == "invalid_encoding"
    assert code_of(post(Door(), window_of(27, REPORT), "zstd")) == "invalid_encoding"


def test_what_is_decoded_counts_in_flight_as_it_is_made() -> None:
    taken: list[int] = []

    def take(count: int) -> None:
        if sum(taken) + count > MIB:
            raise Refused("overloaded", "Later.")
        taken.append(count)

    body = b"".join(report(number) for number in range(100_000))
    with pytest.raises(Refused) as caught:
        asyncio.run(encoding.decode(gzip.compress(body), "gzip", 20 * MIB, take))
    assert caught.value.code == "overloaded"
    assert 0 < sum(taken) <= MIB
    assert max(taken) <= 256 * KIB
    del taken[:]
    assert asyncio.run(encoding.decode(zstd(body[:MIB]), "zstd", 20 * MIB, take)) == body[:MIB]
    assert sum(taken) == MIB


def test_a_decoded_body_that_would_pass_the_bytes_in_flight_is_503() -> None:
    door = Door(max_body_bytes=MIB, in_flight_bytes=MIB, page_reserve_bytes=0)
    body = b"[" + b",".join(report(number) for number in range(30_000)) + b"]"
    sent = zlib.compress(body[: MIB - 3], 0)
    result = post(door, sent, "deflate")
    assert (result.status_code, code_of(result)) == (503, "overloaded")
    assert door.request("POST", PATH, body=REPORT, headers={"content-type": "application/json"}).status_code == 200


def test_a_long_stream_gives_way_to_other_requests() -> None:
    async def scenario() -> int:
        sent = gzip.compress(b"\n".join(report(number) for number in range(50_000)), 1)
        running = asyncio.create_task(encoding.decode(sent, "gzip", 20 * MIB, lambda _count: None))
        turns = 0
        while not running.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(scenario()) >= 5
