"""HAProxy before several hosts, with the README's configuration: a host dies under load, and what its clients see."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netwatch.cli import main
from tests.clients.curl import curl
from tests.clients.test_proxies import changed, run, snippet
from tests.system.server import Server, free_port, report, wait_until

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CLIENTS = 6
LOAD_S = 3.0
TRUSTING = ("--trusted-proxies", "127.0.0.1", "--address", "full")


class Door:
    """HAProxy on its port, and the hosts behind it."""

    def __init__(self, port: int, hosts: list[Server]) -> None:
        self.port = port
        self.hosts = hosts


@pytest.fixture
def door(tmp_path: Path, readme: str) -> Iterator[Door]:
    if not HAPROXY:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    names = ("host1", "host2", "host3")
    hosts = [
        Server(tmp_path / name, tmp_path / f"{name}.log", "--name", name, "--workers", "1", *TRUSTING) for name in names
    ]
    port = free_port()
    changes = {f"10.0.0.{n}:8080": f"127.0.0.1:{host.port}" for n, host in enumerate(hosts, 1)}
    (tmp_path / "haproxy.cfg").write_text(
        changed(snippet(readme, "HAProxy (tried with 2.6)"), changes | {"bind :8080": f"bind 127.0.0.1:{port}"}) + "\n"
    )
    try:
        for host in hosts:
            host.start()
        for _ in run([HAPROXY, "-db", "-f", tmp_path / "haproxy.cfg"], port, tmp_path):
            yield Door(port, hosts)
    finally:
        for host in hosts:
            host.end()


class Client(threading.Thread):
    """Posts one small report after the other, each once, under a key or without; what the door answered, by report."""

    def __init__(self, port: int, name: str, *, has_keys: bool, until: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._name = name
        self._has_keys = has_keys
        self._until = until
        self.statuses: dict[str, int] = {}
        self.slowest_s = 0.0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._until.is_set():
            client = f"{self._name}-{len(self.statuses)}"
            key = {"Idempotency-Key": str(uuid.uuid4())} if self._has_keys else {}
            began_s = time.monotonic()
            try:
                body = json.dumps(report(client))
                connection.request("POST", "/api/v1/reports", body, {"Content-Type": "application/json"} | key)
                response = connection.getresponse()
                response.read()
                self.statuses[client] = response.status
            except (OSError, http.client.HTTPException):
                self.statuses[client] = 0
                connection.close()
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        connection.close()


@contextlib.contextmanager
def load(port: int) -> Iterator[list[Client]]:
    until = threading.Event()
    clients = [
        Client(port, f"{'keyed' if n % 2 else 'bare'}{n}", has_keys=bool(n % 2), until=until) for n in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        until.set()
        for client in clients:
            client.join(30)


def lines_of(door: Door) -> list[dict[str, Any]]:
    return [line for host in door.hosts for line in host.stored()]


def test_a_host_that_dies_under_load(door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = door.hosts[0]
    with load(door.port) as clients:
        time.sleep(LOAD_S / 3)
        first.kill()
        time.sleep(LOAD_S / 3)
        first.start()
        time.sleep(LOAD_S / 3)
    statuses = {client: status for thread in clients for client, status in thread.statuses.items()}
    assert Counter(status for client, status in statuses.items() if client.startswith("keyed")).keys() == {200}
    assert set(statuses.values()) <= {200, 502, 503, 0}
    assert max(thread.slowest_s for thread in clients) < 5
    for host in door.hosts:
        host.stop()
    lines = lines_of(door)
    stored = Counter(line["report"]["clientId"] for line in lines)
    lost = {client for client, status in statuses.items() if status == 200} - stored.keys()
    assert not lost
    twice = {client for client, count in stored.items() if count > 1}
    assert all(client.startswith("keyed") for client in twice), "the door sends nothing twice that has no key"
    assert {line["server"] for line in lines} == {"host1", "host2", "host3"}
    assert min(Counter(line["server"] for line in lines).values()) > 10

    rows = asked(door, tmp_path, capsys)
    assert {row["client"] for row in rows} == set(stored)
    assert {(row["n"], row["ids"]) for row in rows} == {(1, 1)}


def asked(door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """How often `netwatch query` sees each client in the hosts' files together, as shipping puts them."""
    for host in door.hosts:
        shutil.copytree(host.data_dir / "reports", tmp_path / "all" / "reports", dirs_exist_ok=True)
    statement = "SELECT client, count(*) AS n, count(DISTINCT id) AS ids FROM reports GROUP BY client"
    capsys.readouterr()
    assert main(["query", statement, "--data-dir", str(tmp_path / "all"), "--format", "json"]) == 0
    return [json.loads(row) for row in capsys.readouterr().out.splitlines()]


@pytest.mark.soak
def test_only_a_request_with_a_key_is_sent_to_another_host(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One host's writer freezes with requests in its hands, which it stores when it wakes up."""
    frozen = door.hosts[0].find_one("writer")
    os.kill(frozen.pid, signal.SIGSTOP)
    statuses: dict[str, int] = {}

    def post(client: str, *header: str) -> None:
        kind = ("-H", "Content-Type: application/json")
        statuses[client] = curl(*kind, *header, "-d", json.dumps(report(client)), url(door)).status

    keyed, bare = [f"keyed{n}" for n in range(3)], [f"bare{n}" for n in range(3)]
    threads = [threading.Thread(target=post, args=[name, "-H", f"Idempotency-Key: {name}"]) for name in keyed]
    threads += [threading.Thread(target=post, args=[name]) for name in bare]
    for thread in threads:  # each host gets one of the first three, and one of the others
        thread.start()
        if thread is threads[2]:
            time.sleep(0.5)
    for thread in threads:
        thread.join(20)
    os.kill(frozen.pid, signal.SIGCONT)
    assert [statuses[name] for name in keyed] == [200] * 3
    assert {statuses[name] for name in bare} == {200, 503}
    time.sleep(0.5)
    for host in door.hosts:
        host.stop()
    lines = lines_of(door)
    stored = Counter(line["report"]["clientId"] for line in lines)
    assert {stored[name] for name in keyed} == {1, 2}
    assert max(stored[name] for name in bare) == 1
    assert len({line["id"] for line in lines}) == len(stored)
    assert {row["n"] for row in asked(door, tmp_path, capsys)} == {1}


@pytest.mark.soak
def test_a_host_that_is_not_ready_gets_nothing(door: Door) -> None:
    drained, full, ready = door.hosts
    drained.stop()
    full.stop()
    full.flags = (*full.flags, "--min-free-bytes", f"{1 << 60}")
    full.start()
    assert full.ask("GET", "/readyz").status == 503
    asked_before = len(full.stored())

    def is_settled() -> bool:
        return all(curl("--max-time", "5", f"http://127.0.0.1:{door.port}/readyz").status == 200 for _ in range(6))

    assert wait_until(is_settled, 15)
    statuses = [
        curl("-H", "Content-Type: application/json", "-d", json.dumps(report(f"r{n}")), url(door)).status
        for n in range(12)
    ]
    assert statuses == [200] * 12
    ready.stop()
    assert len(ready.stored()) == 12
    assert len(full.stored()) == asked_before


@pytest.mark.soak
def test_what_the_door_cannot_keep_it_cannot_send_again(door: Door, tmp_path: Path) -> None:
    """Three bodies over its buffer, one to each host, of which one has a frozen writer."""
    (tmp_path / "body").write_text(json.dumps(report("large", padding_bytes=600_000)))
    frozen = door.hosts[0].find_one("writer")
    os.kill(frozen.pid, signal.SIGSTOP)
    statuses: list[int] = []

    def post(number: int) -> None:
        headers = ("-H", "Content-Type: application/json", "-H", f"Idempotency-Key: large-{number}")
        where = ("--interface", "127.0.0.2", url(door))
        statuses.append(curl(*headers, "--data-binary", f"@{tmp_path / 'body'}", *where).status)

    threads = [threading.Thread(target=post, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    os.kill(frozen.pid, signal.SIGCONT)
    assert set(statuses) == {200, 503}
    time.sleep(0.5)
    for host in door.hosts:
        host.stop()
    lines = lines_of(door)
    assert len({line["id"] for line in lines}) == len(lines) <= 3
    assert {line["address"] for line in lines} == {"127.0.0.2"}, "who posted, and not the door"


def url(door: Door) -> str:
    return f"http://127.0.0.1:{door.port}/api/v1/reports"
