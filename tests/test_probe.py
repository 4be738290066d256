from __future__ import annotations

import argparse
import itertools
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from netwatch import probe
from netwatch.errors import StartError
from tests.clients.certificate import Certificate

Measured = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a real server that answers every GET and POST with `answer`; over TLS with a `context`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815 (http.server's name)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def answering(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@contextmanager
def refusing() -> Iterator[str]:
    """A URL where nobody listens; the port is held, so that nobody else takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def stalling(first_bytes: bytes = b"") -> Iterator[str]:
    """A URL that accepts, sends `first_bytes`, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            try:
                accepted.append(listener.accept()[0])
                accepted[0].sendall(first_bytes)
            except OSError:
                pass  # the test is over

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()


def probing(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    probe.add_arguments(parser)
    return probe.run(parser.parse_args(arguments))


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Measured:
    """The hosts of the report that `--print` shows."""

    def measure(*arguments: str) -> list[dict[str, Any]]:
        assert probing("--print", *arguments) == 0
        hosts = json.loads(capsys.readouterr().out)["hosts"]
        assert isinstance(hosts, list)
        return hosts

    return measure


def error_of(host: dict[str, Any]) -> str | None:
    (sample,) = host["history"]
    assert (host["status"] == "online") == (sample["error"] is None)
    error = sample["error"]
    assert error is None or isinstance(error, str)
    return error


def test_an_answer_is_measured(measured: Measured) -> None:
    before_ms = time.time() * 1000
    with serving(answering(200, b"hello")) as url:
        (host,) = measured(f"{url}/a?b=c")
    (sample,) = host.pop("history")
    assert host == {"name": url.removeprefix("http://"), "url": f"{url}/a?b=c", "status": "online"}
    assert isinstance(sample["t"], int)
    assert before_ms - 1 <= sample["t"] <= time.time() * 1000
    assert isinstance(sample["latency"], float)
    assert 0 < sample["latency"] < 5000
    assert sample["error"] is None


@pytest.mark.parametrize(
    ("status", "error"), [(204, None), (404, None), (499, None), (500, "http 500"), (503, "http 503")]
)
def test_below_500_is_online(measured: Measured, status: int, error: str | None) -> None:
    with serving(answering(status)) as url:
        (host,) = measured(url)
    assert error_of(host) == error
    assert isinstance(host["history"][0]["latency"], float)


def test_a_closed_port_is_refused(measured: Measured) -> None:
    with refusing() as url:
        (host,) = measured(url)
    assert host["status"] == "error"
    assert host["history"][0]["latency"] is None
    assert error_of(host) == "connect: refused"


def test_every_address_of_a_name_is_refused(measured: Measured) -> None:
    with refusing() as url:  # localhost may be ::1 too, then the error is a group
        assert error_of(*measured(url.replace("127.0.0.1", "localhost"))) == "connect: refused"


@pytest.mark.parametrize(
    "first_bytes", [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]
)
def test_a_stalling_server_ends_at_the_timeout(measured: Measured, first_bytes: bytes) -> None:
    started = time.monotonic()
    with stalling(first_bytes) as url:
        (host,) = measured("--timeout-s", "0.3", url)
    assert error_of(host) == "timeout"
    assert host["history"][0]["latency"] is None
    assert time.monotonic() - started < 3


def test_a_server_that_trickles_for_ever_ends_at_the_timeout(measured: Measured) -> None:
    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"." * 65536)
        except OSError:
            pass

    with serving(trickle) as url:
        assert error_of(*measured("--timeout-s", "0.3", url)) == "timeout"


def test_an_unknown_name_is_dns(measured: Measured) -> None:
    too_long = ".".join(["x" * 60] * 5)  # refused by the resolver itself: no packet leaves
    assert error_of(*measured(f"http://{too_long}/")) == "dns"


def test_plain_http_behind_https_is_tls(measured: Measured) -> None:
    with serving(answering(200)) as url:
        assert error_of(*measured(url.replace("http:", "https:"))) == "tls"


@pytest.mark.parametrize(
    "bytes_sent", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"]
)
def test_what_speaks_no_http_is_protocol(measured: Measured, bytes_sent: bytes) -> None:
    with stalling(bytes_sent) as url:
        assert error_of(*measured(url)) == "protocol"


def test_an_answer_cut_short_is_protocol(measured: Measured) -> None:
    def cut(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-length", "9")
        request.end_headers()
        request.wfile.write(b"half")

    with serving(cut) as url:
        assert error_of(*measured(url)) == "protocol"


def redirecting(times: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        done = int(request.path.strip("/") or 0)
        (answering(302, Location=f"/{done + 1}") if done < times else answering(200))(request)

    return answer


@pytest.mark.parametrize(("times", "error"), [(5, None), (6, "redirects")])
def test_five_redirects_are_followed(measured: Measured, times: int, error: str | None) -> None:
    with serving(redirecting(times)) as url:
        assert error_of(*measured(url)) == error


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1:x/"])
def test_a_redirect_to_nowhere_is_protocol(measured: Measured, location: str) -> None:
    with serving(answering(302, Location=location)) as url:
        assert error_of(*measured(url)) == "protocol"


def test_urls_are_measured_in_parallel_and_keep_their_order(measured: Measured) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        answering(200)(request)

    with serving(slow) as url:
        started = time.monotonic()
        hosts = measured(*(f"{url}/{number}" for number in range(20)))
    assert time.monotonic() - started < 20 * 0.2
    assert [host["url"] for host in hosts] == [f"{url}/{number}" for number in range(20)]


def test_a_password_is_not_reported(measured: Measured) -> None:
    with serving(answering(200)) as url:
        (host,) = measured(url.replace("http://", "http://user:secret@"))
    assert host["url"].rstrip("/") == url
    assert "secret" not in json.dumps(host)


def test_all_is_posted_as_one_report(capsys: pytest.CaptureFixture[str]) -> None:
    posted = []

    def take(request: BaseHTTPRequestHandler) -> None:
        if request.command == "POST":
            body = request.rfile.read(int(request.headers["content-length"]))
            posted.append((request.path, request.headers["content-type"], json.loads(body)))
        answering(200, b'{"id":\n"0193"}')(request)

    with serving(take) as server, refusing() as refused:
        assert probing("--server", f"{server}/", "--client-id", "me", f"{server}/livez", refused) == 0
    ((path, media_type, report),) = posted
    assert (path, media_type) == ("/api/v1/reports", "application/json")
    assert set(report) == {"clientId", "timestamp", "hosts"}
    assert report["clientId"] == "me"
    assert abs(datetime.fromisoformat(report["timestamp"]) - datetime.now(UTC)).total_seconds() < 60
    assert [error_of(host) for host in report["hosts"]] == [None, "connect: refused"]
    assert capsys.readouterr() == ('200 {"id": "0193"}\n', "")


def test_the_host_is_the_default_client(capsys: pytest.CaptureFixture[str]) -> None:
    with refusing() as url:
        assert probing("--print", url) == 0
    assert json.loads(capsys.readouterr().out)["clientId"] == socket.gethostname()


@pytest.mark.parametrize("status", [201, 302, 400, 503])
def test_only_200_is_success(capsys: pytest.CaptureFixture[str], status: int) -> None:
    with serving(answering(status, b"why", Location="/elsewhere")) as server:
        assert probing("--server", server, server) == 1
    assert capsys.readouterr() == (f"{status} why\n", "")


def test_a_server_that_is_away_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with refusing() as server:
        assert probing("--server", server, server) == 1
    assert capsys.readouterr() == ("", f"netwatch probe: no answer from the server {server}: connect: refused\n")


def test_a_token_in_the_servers_url_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with refusing() as server:
        assert probing("--server", server.replace("//", "//agents:0123456789abcdef@"), server) == 1
    assert capsys.readouterr() == ("", f"netwatch probe: no answer from the server {server}: connect: refused\n")


def test_a_server_that_stalls_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with stalling() as server, refusing() as url:
        assert probing("--timeout-s", "0.3", "--server", server, url) == 1
    assert capsys.readouterr() == ("", f"netwatch probe: no answer from the server {server}: timeout\n")


BAD_URLS = [
    "",
    "host",
    "host:80",
    "ftp://host",
    "http://",
    "http://:80",
    "http://host:x",
    "http://host:0",
    "http://host:65536",
    "http://xn--/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_one_sentence(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert probing("--print", url) == 2
    assert probing("--server", url, "http://127.0.0.1:1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [repr(url) in line for line in err.splitlines()] == [True, True]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_bad_timeout_is_refused(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        probing("--timeout-s", seconds, "http://127.0.0.1:1")
    assert refusal.value.code == 2
    assert "--timeout-s" in capsys.readouterr().err


def test_the_client_is_loaded_only_to_measure() -> None:
    program = "import sys, netwatch.probe; print([m for m in ('asyncio', 'httpx', 'anyio') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


PARTS = ["dnsMs", "connectMs", "tlsMs", "firstByteMs"]


def test_the_parts_of_the_time_are_told(measured: Measured) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        answering(200)(request)

    with serving(slow) as url:
        (host,) = measured(url.replace("127.0.0.1", "localhost"))
    (sample,) = host["history"]
    assert list(sample) == ["t", "latency", "error", "dnsMs", "connectMs", "firstByteMs"]
    assert sample["firstByteMs"] >= 100
    assert all(sample[name] >= 0 for name in PARTS if name in sample)
    assert sum(sample[name] for name in PARTS if name in sample) <= sample["latency"]


def test_an_address_needs_no_lookup_and_http_no_tls(measured: Measured) -> None:
    with serving(answering(200)) as url:
        (host,) = measured(url)
    assert list(host["history"][0]) == ["t", "latency", "error", "connectMs", "firstByteMs"]


def test_the_lookup_is_no_part_of_connecting(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with serving(answering(200)) as url:
        (host,) = measured(url.replace("127.0.0.1", "localhost"))
    (sample,) = host["history"]
    assert sample["dnsMs"] >= 200
    assert sample["connectMs"] < 200 < sample["latency"]


def test_tls_is_a_part(measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    with serving(answering(200), certificate.context()) as url:
        (host,) = measured(url)
    assert list(host["history"][0]) == ["t", "latency", "error", "connectMs", "tlsMs", "firstByteMs"]
    assert host["history"][0]["tlsMs"] > 0


def test_only_the_steps_that_were_finished_are_told(measured: Measured) -> None:
    with refusing() as refused, stalling() as stalled:
        hosts = measured("--timeout-s", "0.3", refused.replace("127.0.0.1", "localhost"), stalled)
    assert [list(host["history"][0])[3:] for host in hosts] == [["dnsMs"], ["connectMs"]]


def test_redirects_add_up(measured: Measured) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        redirecting(2)(request)

    with serving(slow) as url:
        (host,) = measured(url)
    assert host["history"][0]["firstByteMs"] >= 300


def test_each_sample_has_a_connection_of_its_own_and_its_time(measured: Measured) -> None:
    peers = []

    def note(request: BaseHTTPRequestHandler) -> None:
        peers.append(request.client_address)
        answering(200)(request)

    with serving(note) as url:
        (host,) = measured("--count", "3", "--interval", "0.2", url)
    assert len(set(peers)) == len(peers) == 3
    history = host["history"]
    assert len(history) == 3
    assert all("connectMs" in sample for sample in history)
    assert 350 < history[2]["t"] - history[0]["t"] < 5000


def test_the_last_sample_is_the_status(measured: Measured) -> None:
    statuses = iter([500, 200, 200, 500])

    def answer(request: BaseHTTPRequestHandler) -> None:
        answering(next(statuses))(request)

    with serving(answer) as url:
        for status, errors in (("online", ["http 500", None]), ("error", [None, "http 500"])):
            (host,) = measured("--count", "2", "--interval-s", "0.01", url)
            assert host["status"] == status
            assert [sample["error"] for sample in host["history"]] == errors


def test_a_slow_answer_delays_the_next_sample_and_doubles_none(measured: Measured) -> None:
    with stalling() as url:
        (host,) = measured("--count", "3", "--interval-s", "0.01", "--timeout-s", "0.2", url)
    times = [sample["t"] for sample in host["history"]]
    assert all(later - earlier >= 199 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "1001", "many"])
def test_a_bad_count_is_refused(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        probing("--count", count, "http://127.0.0.1:1")
    assert refusal.value.code == 2
    assert "--count" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["flag", "credential", "none", "empty"])
def test_the_token_is_sent(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    if way != "none":
        token.write_text("" if way == "empty" else "0123456789abcdef0\n")
    if way != "flag":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    seen = []

    def take(request: BaseHTTPRequestHandler) -> None:
        if request.command == "POST":
            seen.append(request.headers["authorization"])
        answering(200)(request)

    with serving(take) as url:
        assert probing(*(["--token-file", str(token)] if way == "flag" else []), "--server", url, url) == 0
    assert seen == ["Bearer 0123456789abcdef0" if way in ("flag", "credential") else None]


@pytest.mark.parametrize("content", [None, b"two tokens", b"agents\nmore", b"\xff"])
def test_a_bad_token_file_is_one_sentence_that_keeps_the_secret(content: bytes | None, tmp_path: Path) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with pytest.raises(StartError) as refusal:
        probing("--token-file", str(token), "http://127.0.0.1:1")
    assert refusal.value.exit_code == 2
    assert str(token) in str(refusal.value)
    assert "two" not in str(refusal.value)
