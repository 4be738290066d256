"""nginx and Caddy in front of the server, with the README's snippets: only ports and files are changed."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.certificate import Certificate
from tests.clients.collector import Collector
from tests.clients.conftest import Collect
from tests.clients.curl import Done, curl
from tests.system.server import free_port, report

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CADDY = shutil.which("caddy")
NDJSON = "Content-Type: application/x-ndjson"
MIB = 1024 * 1024


class Proxy(NamedTuple):
    """A proxy that runs, and the server behind it."""

    name: str
    port: int
    collector: Collector
    certificate: Certificate | None

    def curl(self, path: str, *arguments: str | Path) -> Done:
        """curl, asking the proxy by the name of its site."""
        if not self.certificate:
            return curl(*arguments, f"http://127.0.0.1:{self.port}{path}")
        site = ("--resolve", f"collector.example:{self.port}:127.0.0.1", "--cacert", self.certificate.path)
        return curl(*site, *arguments, f"https://collector.example:{self.port}{path}")

    def connect(self) -> http.client.HTTPConnection:
        if not self.certificate:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        context = ssl.create_default_context(cafile=str(self.certificate.path))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)


def snippet(readme: str, title: str) -> str:
    """The literal block of the README that follows ``title``."""
    _, _, after = readme.partition(f"{title}::\n\n")
    lines = []
    for line in after.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line[4:])
    assert lines, title
    return "\n".join(lines)


def changed(text: str, changes: dict[str, str]) -> str:
    """``text`` with each of the changes made once."""
    for old, new in changes.items():
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    return text


def run(command: list[str | Path], port: int, directory: Path) -> Iterator[None]:
    """The command, until the tests are over; it listens when this is there."""
    environ = {**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    log = directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environ, cwd=directory)
    try:
        until_s = time.monotonic() + 10
        while curl("--max-time", "1", f"http://127.0.0.1:{port}/livez").status == 0:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def collector(collect: Collect) -> Collector:
    return collect("--trusted-proxies", "127.0.0.1", "--address", "full")


@pytest.fixture(scope="module")
def nginx(
    collector: Collector, certificate: Certificate, readme: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    if not NGINX:
        pytest.skip("nginx is not installed: apt-get install nginx")
    directory = tmp_path_factory.mktemp("nginx")
    port = free_port()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/collector.pem": str(certificate.path),
        "/etc/ssl/collector.key": str(certificate.key),
        "http://127.0.0.1:8080": collector.url,
    }
    site = changed(snippet(readme, "nginx"), changes)
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
    temporary += "".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr warn;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{site}\n}}\n"
    )
    command: list[str | Path] = [NGINX, "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]
    for _ in run(command, port, directory):
        yield Proxy("nginx", port, collector, certificate)


@pytest.fixture(scope="module")
def caddy(collector: Collector, readme: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Over plain HTTP: for its own certificates it would need a name that the world knows."""
    if not CADDY:
        pytest.skip("caddy is not installed: apt-get install caddy")
    directory = tmp_path_factory.mktemp("caddy")
    port = free_port()
    changes = {"collector.example {": f"http://127.0.0.1:{port} {{", "127.0.0.1:8080": f"127.0.0.1:{collector.port}"}
    site = changed(snippet(readme, "Caddy"), changes)
    (directory / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{site}\n")
    command: list[str | Path] = [CADDY, "run", "--config", directory / "Caddyfile", "--adapter", "caddyfile"]
    for _ in run(command, port, directory):
        yield Proxy("caddy", port, collector, None)


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def body(tmp_path: Path) -> Path:
    return tmp_path / "body"


def test_a_post_is_stored_with_the_clients_address(proxy: Proxy) -> None:
    client = f"{proxy.name}-address"
    done = proxy.curl("/api/v1/reports", "--interface", "127.0.0.2", "-H", NDJSON, "-d", json.dumps(report(client)))
    assert (done.status, done.json["accepted"]) == (200, 1)
    assert proxy.collector.wait_for_client(client)[0]["address"] == "127.0.0.2"


def test_a_client_cannot_invent_its_address(proxy: Proxy) -> None:
    client = f"{proxy.name}-liar"
    lies = ("-H", "X-Forwarded-For: 203.0.113.9")
    request = ("--interface", "127.0.0.2", "-H", NDJSON, *lies, "-d", json.dumps(report(client)))
    assert proxy.curl("/api/v1/reports", *request).status == 200
    assert proxy.collector.wait_for_client(client)[0]["address"] == "127.0.0.2"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_close_to_the_limit_is_stored(proxy: Proxy, body: Path, is_chunked: bool) -> None:
    client = f"{proxy.name}-close-{is_chunked}"
    one = json.dumps(report(client, padding_bytes=500_000)).encode() + b"\n"
    body.write_bytes(one * (20 * MIB // len(one)))  # more than 20 MB
    assert body.stat().st_size > 20_000_000
    chunked = ("-H", "Transfer-Encoding: chunked") if is_chunked else ()
    done = proxy.curl("/api/v1/reports", "-H", NDJSON, *chunked, "--data-binary", f"@{body}")
    assert (done.status, done.json["rejected"]) == (200, 0)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused_for_good(proxy: Proxy, body: Path, is_chunked: bool) -> None:
    with body.open("wb") as file:
        file.truncate(22 * MIB)
    chunked = ("-H", "Transfer-Encoding: chunked") if is_chunked else ()
    done = proxy.curl("/api/v1/reports", "-H", NDJSON, *chunked, "--data-binary", f"@{body}")
    assert done.status == 413  # a shipper would send the same body for ever after a 502
    assert proxy.curl("/livez").status == 200


def test_requests_share_one_connection(proxy: Proxy) -> None:
    client = f"{proxy.name}-kept"
    connection = proxy.connect()
    sockets = set()
    for _ in range(5):
        connection.request("POST", "/api/v1/reports", json.dumps(report(client)), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1
    assert None not in sockets
    proxy.collector.wait_for_client(client, 5)


def test_a_page_of_the_collectors_own_origin_may_post(proxy: Proxy) -> None:
    scheme, name = ("https", "collector.example") if proxy.certificate else ("http", "127.0.0.1")
    request = ("-H", NDJSON, "-d", json.dumps(report(f"{proxy.name}-own")))
    own = proxy.curl("/api/v1/reports", "-H", f"Origin: {scheme}://{name}:{proxy.port}", *request)
    assert own.status == 200
    foreign = proxy.curl("/api/v1/reports", "-H", "Origin: https://www.example", *request)
    assert foreign.status == 403


def test_problems_pass_unchanged(proxy: Proxy) -> None:
    done = proxy.curl("/api/v1/reports", "-H", NDJSON, "-d", "no report")
    assert (done.status, done.json["type"]) == (400, "urn:netwatch:error:invalid_json")


def test_nginx_limits_the_rate_with_429(nginx: Proxy) -> None:
    connection = nginx.connect()
    statuses: list[int] = []
    while 429 not in statuses and len(statuses) < 3000:  # 200 are free, then 50 in each second
        connection.request("GET", "/livez")
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()
    assert set(statuses) == {200, 429}
    assert len(statuses) > 150
