"""curl posting: plain, chunked, with Expect: 100-continue, compressed, lines, and again after a lost answer."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.clients.collector import Collector
from tests.clients.conftest import Collect
from tests.clients.curl import curl
from tests.system.server import report

JSON = ("-H", "Content-Type: application/json")
NDJSON = ("-H", "Content-Type: application/x-ndjson")


@pytest.fixture(scope="module")
def collector(collect: Collect) -> Collector:
    return collect()


@pytest.fixture
def body(tmp_path: Path) -> Path:
    return tmp_path / "body"


def lines(client: str, count: int, *, padding_bytes: int = 0) -> bytes:
    return b"".join(json.dumps(report(client, padding_bytes=padding_bytes)).encode() + b"\n" for _ in range(count))


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain"])
def test_a_plain_post_is_stored(collector: Collector, content_type: str) -> None:
    client = f"plain-{content_type}"
    done = curl("-H", f"Content-Type: {content_type}", "-d", json.dumps(report(client)), collector.reports_url)
    assert (done.status, done.json["accepted"]) == (200, 1)
    assert collector.wait_for_client(client)[0]["report"] == report(client)


def test_curls_own_content_type_is_refused_with_what_to_send(collector: Collector) -> None:
    done = curl("-d", json.dumps(report("form")), collector.reports_url)
    assert done.status == 415
    assert "application/json" in done.json["taken"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_lines_are_stored(collector: Collector, body: Path, is_chunked: bool) -> None:
    client = f"lines-{is_chunked}"
    body.write_bytes(lines(client, 100))
    chunked = ["-H", "Transfer-Encoding: chunked"] if is_chunked else []
    done = curl(*NDJSON, *chunked, "--data-binary", f"@{body}", collector.reports_url)
    assert (done.status, done.json["accepted"]) == (200, 100)
    collector.wait_for_client(client, 100)


def test_an_upload_from_a_pipe_is_chunked(collector: Collector) -> None:
    done = curl(*NDJSON, "-X", "POST", "-T", "-", collector.reports_url, stdin=lines("pipe", 3, padding_bytes=100_000))
    assert "> Transfer-Encoding: chunked" in done.talk
    assert (done.status, done.json["accepted"]) == (200, 3)
    collector.wait_for_client("pipe", 3)


def test_a_large_body_waits_for_100_continue(collector: Collector, body: Path) -> None:
    body.write_bytes(lines("expect", 30, padding_bytes=100_000))
    done = curl(*NDJSON, "--expect100-timeout", "15", "--data-binary", f"@{body}", collector.reports_url)
    assert "> Expect: 100-continue" in done.talk
    assert "< HTTP/1.1 100 Continue" in done.talk
    assert (done.status, done.json["accepted"]) == (200, 30)
    collector.wait_for_client("expect", 30)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused_while_it_is_sent(collector: Collector, body: Path, is_chunked: bool) -> None:
    with body.open("wb") as file:
        file.truncate(21 * 1024 * 1024)
    chunked = ["-H", "Transfer-Encoding: chunked"] if is_chunked else []
    done = curl(*NDJSON, *chunked, "--data-binary", f"@{body}", collector.reports_url)
    assert (done.code, done.status, done.json["limit"]) == (0, 413, 20 * 1024 * 1024)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_compressed_body_is_stored(collector: Collector, body: Path, encoding: str, is_chunked: bool) -> None:
    client = f"{encoding}-{is_chunked}"
    plain = lines(client, 50)
    body.write_bytes(gzip.compress(plain) if encoding == "gzip" else zstandard.compress(plain))
    chunked = ["-H", "Transfer-Encoding: chunked"] if is_chunked else []
    headers = [*NDJSON, *chunked, "-H", f"Content-Encoding: {encoding}"]
    done = curl(*headers, "--data-binary", f"@{body}", collector.reports_url)
    assert (done.status, done.json["accepted"]) == (200, 50)
    collector.wait_for_client(client, 50)


def test_many_requests_share_one_connection(collector: Collector) -> None:
    done = curl(*JSON, "-d", json.dumps(report("kept")), f"{collector.reports_url}?[1-5]", "--fail-early")
    assert done.status == 200
    assert done.talk.count("Re-using existing connection") == 4
    collector.wait_for_client("kept", 5)


class _Lossy(ThreadingHTTPServer):
    """A relay that passes requests on and keeps the first answer back: for a status of its own, or for silence."""

    daemon_threads = True

    def __init__(self, port: int, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.port = port
        self.status = status
        self.answers: list[Any] = []


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Lossy

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        onward = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        onward.request("POST", self.path, sent, dict(self.headers))
        response = onward.getresponse()
        answer = response.read()
        onward.close()
        self.server.answers.append(json.loads(answer))
        is_first = len(self.server.answers) == 1
        if is_first and not self.server.status:
            self.close_connection = True
            return
        self.send_response(self.server.status if is_first else response.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def lossy(collector: Collector, request: pytest.FixtureRequest) -> Iterator[_Lossy]:
    relay = _Lossy(collector.port, request.param)
    thread = threading.Thread(target=relay.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield relay
    relay.shutdown()
    thread.join()
    relay.server_close()


@pytest.mark.parametrize("lossy", [0, 503, 504], indirect=True)
def test_a_retry_under_a_key_is_stored_once(collector: Collector, body: Path, lossy: _Lossy) -> None:
    client = f"retry-{lossy.status}"
    body.write_bytes(lines(client, 3))
    key = ["-H", f"Idempotency-Key: {client}"]
    retry = ["--retry", "10", "--retry-delay", "1", "--retry-all-errors"]
    url = f"http://127.0.0.1:{lossy.server_port}/api/v1/reports"
    done = curl(*NDJSON, *key, *retry, "--data-binary", f"@{body}", url)
    assert done.status == 200
    first, second = lossy.answers
    assert (first["accepted"], first["duplicates"]) == (3, 0)
    assert (second["accepted"], second["duplicates"]) == (0, 3)
    assert first["id"] == second["id"]
    assert collector.clients_after_marker().count(client) == 3
