"""Vector's and Fluent Bit's requests, byte for byte as their sources make them, and the answers that lose nothing.

The programs themselves are in no registry that tests can use, so the requests are made here:

- Vector 0.58 (vectordotdev/vector): src/sinks/http/{config,encoder,service}.rs for types, framing and encodings,
  src/http.rs for `user-agent` and `accept-encoding`; hyper adds `host` and `content-length`, all in lower case. Its
  zstd is a stream whose header has no size.
- Fluent Bit 5.1 (fluent/fluent-bit): plugins/out_http/http.c and src/flb_http_client.c for the headers and their order,
  src/flb_pack.c for the formats. Until 3.0.2 `json_lines` went as application/json (changed by pull request 8715).
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from tests.clients.collector import Collector
from tests.clients.conftest import Collect
from tests.system.server import Answer, read_answer, report

TOKEN = "shippers-0123456789abcdef"
JSON = "application/json"
NDJSON = "application/x-ndjson"
Shipper = Callable[..., bytes]
SNAPPY = b"\xff\x06\x00\x00sNaPpY\x01\x05\x00\x00\x00\x00\x00\x00{"


def _zstd_stream(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor(level=3).compressobj()
    return stream.compress(data) + stream.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": _zstd_stream,
    "snappy": lambda _data: SNAPPY,
    "": lambda data: data,
}


def vector(port: int, content_type: str, body: bytes, encoding: str = "", auth: str = "") -> bytes:
    """A request of Vector's `http` sink."""
    body = COMPRESS[encoding](body)
    lines = [
        "POST /api/v1/reports HTTP/1.1",
        f"content-type: {content_type}",
        *([f"content-encoding: {encoding}"] if encoding else []),
        *([f"authorization: {auth}"] if auth else []),
        "user-agent: Vector/0.58.0 (x86_64-unknown-linux-gnu 0123456 2026-08-20)",
        "accept-encoding: identity",
        f"host: 127.0.0.1:{port}",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fluent_bit(port: int, content_type: str, body: bytes, encoding: str = "", auth: str = "") -> bytes:
    """A request of Fluent Bit's `http` output, over a connection that it keeps."""
    body = COMPRESS[encoding](body)
    lines = [
        "POST /api/v1/reports HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(body)}",
        f"Content-Type: {content_type}",
        *([f"Content-Encoding: {encoding}"] if encoding else []),
        "User-Agent: Fluent-Bit",
        *([f"Authorization: {auth}"] if auth else []),
        "Connection: keep-alive",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def events(client: str, *, date: bool = False) -> list[bytes]:
    """Two events of a shipper as it writes them; Fluent Bit puts a member `date` first."""
    first = {"date": 1767225600.123} if date else {}
    made = [{**first, **report(client), "file": "/var/log/öl", "offset": number} for number in range(2)]
    return [json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() for event in made]


def array(parts: list[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"


# name: (who, content type, how the events stand in the body, encoding)
TAKEN: dict[str, tuple[Shipper, str, Callable[[list[bytes]], bytes], str]] = {
    "vector-default": (vector, JSON, array, ""),
    "vector-array-gzip": (vector, JSON, array, "gzip"),
    "vector-newline": (vector, NDJSON, b"\n".join, ""),
    "vector-newline-gzip": (vector, NDJSON, b"\n".join, "gzip"),
    "vector-newline-zlib": (vector, NDJSON, b"\n".join, "deflate"),
    "vector-newline-zstd-recommended": (vector, NDJSON, b"\n".join, "zstd"),
    "fluent-bit-default": (fluent_bit, JSON, array, ""),
    "fluent-bit-json-gzip": (fluent_bit, JSON, array, "gzip"),
    "fluent-bit-json-stream": (fluent_bit, JSON, b"".join, ""),
    "fluent-bit-json-stream-zstd": (fluent_bit, JSON, b"".join, "zstd"),
    "fluent-bit-json-lines": (fluent_bit, NDJSON, lambda parts: b"\n".join([*parts, b""]), ""),
    "fluent-bit-json-lines-gzip-recommended": (fluent_bit, NDJSON, lambda parts: b"\n".join([*parts, b""]), "gzip"),
    "fluent-bit-2-json-lines": (fluent_bit, JSON, lambda parts: b"\n".join([*parts, b""]), "gzip"),
}
REFUSED: dict[str, tuple[Shipper, str, str, int, str]] = {
    "vector-snappy": (vector, JSON, "snappy", 415, "unsupported_encoding"),
    "fluent-bit-snappy": (fluent_bit, JSON, "snappy", 415, "unsupported_encoding"),
    "fluent-bit-msgpack": (fluent_bit, "application/msgpack", "", 415, "unsupported_media_type"),
    "vector-otlp": (vector, "application/x-protobuf", "", 415, "unsupported_media_type"),
}


@pytest.fixture(scope="module")
def collector(collect: Collect) -> Collector:
    return collect()


@pytest.fixture(scope="module")
def locked_collector(collect: Collect) -> Collector:
    """It wants a token."""
    return collect("--tokens", f"shippers:{TOKEN}")


def exchange(collector: Collector, *requests: bytes) -> Iterator[Answer]:
    """The answers to requests on one connection, one after the other."""
    with collector.connect() as connection:
        for request in requests:
            connection.sendall(request)
            yield read_answer(connection)


@pytest.mark.parametrize("name", TAKEN)
def test_batches_are_stored_whole_over_a_kept_connection(collector: Collector, name: str) -> None:
    shipper, content_type, frame, encoding = TAKEN[name]
    sent = events(name, date=shipper is fluent_bit)
    request = shipper(collector.port, content_type, frame(sent), encoding)
    for answer in exchange(collector, request, request):
        assert answer.status == 200
        assert (answer.json["accepted"], answer.json["rejected"]) == (2, 0)
        assert answer.headers.get("connection") != "close"
    stored = [line["report"] for line in collector.wait_for_client(name, 4)]
    assert stored == [json.loads(event) for event in sent] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_for_good_with_the_list_of_what_is(collector: Collector, name: str) -> None:
    shipper, content_type, encoding, status, code = REFUSED[name]
    request = shipper(collector.port, content_type, array(events(name)), encoding)
    refused, taken = exchange(collector, request, shipper(collector.port, JSON, array(events(f"{name}-after"))))
    assert (refused.status, refused.code) == (status, code)
    assert refused.json["taken"]
    assert taken.status == 200
    collector.wait_for_client(f"{name}-after", 2)
    assert name not in collector.stored_clients()


@pytest.mark.parametrize("shipper", [vector, fluent_bit])
def test_events_that_are_no_reports_are_dropped_and_never_sent_again(collector: Collector, shipper: Shipper) -> None:
    [answer] = exchange(collector, shipper(collector.port, JSON, b'[{"message":"hello"},{"message":"world"}]'))
    assert (answer.status, answer.code, answer.json["rejected"]) == (400, "no_valid_report", 2)


@pytest.mark.parametrize("shipper", [vector, fluent_bit])
def test_one_bad_event_does_not_lose_the_batch(collector: Collector, shipper: Shipper) -> None:
    name = f"{shipper.__name__}-beside-a-bad-one"
    body = array([b'{"message":"hello"}', *events(name)])
    [answer] = exchange(collector, shipper(collector.port, JSON, body))
    assert answer.status == 200  # 207 would make Fluent Bit send it again
    assert (answer.json["accepted"], answer.json["rejected"]) == (2, 1)
    collector.wait_for_client(name, 2)


@pytest.mark.parametrize("shipper", [vector, fluent_bit])
def test_a_token_opens_as_a_bearer_and_as_a_password(locked_collector: Collector, shipper: Shipper) -> None:
    name = f"{shipper.__name__}-with-a-token"
    basic, wrong = (base64.b64encode(f"shippers:{given}".encode()).decode() for given in (TOKEN, "wrong"))
    requests = [
        shipper(locked_collector.port, JSON, array(events(name)), auth=auth)
        for auth in ("", f"Basic {wrong}", f"Basic {basic}", f"Bearer {TOKEN}")
    ]
    missing, other, *right = exchange(locked_collector, *requests)
    assert (missing.status, missing.code) == (401, "token_missing")
    assert (other.status, other.code) == (401, "token_unknown")
    assert [answer.status for answer in right] == [200, 200]
    locked_collector.wait_for_client(name, 4)


def test_vectors_health_check_asks_readyz_with_head(collector: Collector) -> None:
    head = f"HEAD /readyz HTTP/1.1\r\nhost: 127.0.0.1:{collector.port}\r\nconnection: close\r\n\r\n"
    with collector.connect() as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
