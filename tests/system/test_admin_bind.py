"""``admin_bind``: metrics and details at an address of their own, and nowhere else."""

from __future__ import annotations

import http.client

import pytest

from tests.system.conftest import Serve
from tests.system.server import free_port, report

TOKEN = "0123456789abcdef"
DETAILS = ("/metrics", "/version", "/openapi.json")


def get(host: str, port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_details_are_served_there_without_a_token_and_no_longer_at_bind(serve: Serve, host: str) -> None:
    port = free_port()
    server = serve("--workers", "1", "--admin-bind", f"{host}:{port}", "--tokens", f"agents:{TOKEN}")
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert server.post(report("a"), headers=bearer).status == 200
    for path in DETAILS:
        assert get("127.0.0.1", port, path)[0] == 200
        assert server.ask("GET", path, headers=bearer).status == 404
    assert b'"checks"' in get("127.0.0.1", port, "/readyz?verbose")[1]
    assert b'"checks"' not in server.ask("GET", "/readyz?verbose", headers=bearer).body
    assert get("127.0.0.1", port, "/livez")[0] == server.ask("GET", "/livez").status == 200
    assert get("127.0.0.1", port, "/api/v1/reports", "POST", b'{"clientId":"b","hosts":[]}')[0] == 404
    counted = get("127.0.0.1", port, "/metrics")[1].decode()
    assert 'route="/metrics",method="GET",status="200",code="ok"} 1\n' in counted
    server.stop()
    assert server.stored_clients() == ["a"]


def test_a_port_that_the_system_chooses_is_logged(serve: Serve) -> None:
    server = serve("--workers", "1", "--admin-bind", "127.0.0.1:0")
    url = server.logged("server_started")[0]["admin_address"]
    assert get("127.0.0.1", int(url.rpartition(":")[2]), "/metrics")[0] == 200


def test_at_bind_they_need_a_token_once_there_are_any(serve: Serve) -> None:
    server = serve("--workers", "1", "--tokens", f"agents:{TOKEN}")
    for path in (*DETAILS, "/readyz?verbose"):
        assert server.ask("GET", path).code == "token_missing"
        assert server.ask("GET", path, headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


def test_it_needs_an_address_of_its_own(make_server: Serve) -> None:
    server = make_server("--workers", "1")
    server.flags = ("--admin-bind", f"127.0.0.1:{server.port}")
    server.spawn()
    assert server.wait() == 2
    assert "admin_bind needs an address of its own" in server.log_text()


def test_an_address_that_is_taken_is_named(make_server: Serve) -> None:
    server = make_server("--admin-bind", "192.0.2.1:9")
    server.spawn()
    assert server.wait() == 1
    assert "Cannot listen on 192.0.2.1:9" in server.log_text()
    assert "(--admin-bind)" in server.log_text()
