"""`netwatch tail -f` beside a live server: line by line what was acked, across seals, a killed writer and a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import NETWATCH, Server, report, wait_until


class Tail:
    """A running `netwatch tail -f`: each line that it printed, and when."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.lines: list[tuple[str, float]] = []
        self._process = subprocess.Popen(
            [NETWATCH, "tail", "-f", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append((line.decode(), time.monotonic()))

    @property
    def pid(self) -> int:
        return self._process.pid

    def clients(self) -> list[str]:
        return [json.loads(line)["report"]["clientId"] for line, _ in list(self.lines)]

    def end(self) -> tuple[int, bytes]:
        """Ctrl-C: the exit code, and what it said on stderr."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.stderr
        with self._process.stderr as stderr:
            code, said = self._process.wait(10), stderr.read()
        self._thread.join(10)
        assert self._process.stdout
        self._process.stdout.close()
        return code, said


@pytest.fixture
def tails() -> Iterator[list[Tail]]:
    started: list[Tail] = []
    yield started
    for tail in started:
        tail.end()


def post_until(server: Server, name: str) -> float:
    """Post until it is acked, each time as another report; when it was."""
    key = {"Idempotency-Key": name}

    def is_acked() -> bool:
        try:
            return server.post(report(name), headers=key).status == 200
        except OSError:
            return False

    assert wait_until(is_acked, 15)
    return time.monotonic()


def test_every_acked_line_is_printed_once_and_in_order(serve: Serve, tails: list[Tail]) -> None:
    """Across 50 seals, a writer killed, a restart, all killed and a start; and each within a second of its ack."""
    server = serve("--workers", "1", "--seal-bytes", "1000")
    acked_at_s = {"first": post_until(server, "first")}
    tail = Tail(server.data_dir, "-n", "1000")
    tails.append(tail)
    assert wait_until(lambda: tail.clients() == ["first"], 10)
    for number in range(230):
        name = f"report-{number}"
        if number in (60, 150):
            os.kill(server.find_one("writer").pid, signal.SIGKILL)
        if number == 100:
            server.stop()
            server.start()
        if number == 200:
            server.kill()
            server.start()
        acked_at_s[name] = post_until(server, name)
    names = list(acked_at_s)
    assert wait_until(lambda: len(tail.lines) >= len(names), 5)
    assert tail.clients() == names
    late_s = sorted(at_s - acked_at_s[name] for name, (_, at_s) in zip(names, tail.lines, strict=True))
    assert late_s[len(late_s) * 19 // 20] < 1.0
    server.stop()
    assert len(server.sealed_files()) >= 50
    stored = subprocess.run(["zstd", "-dcq", "--", *map(str, server.sealed_files())], check=True, capture_output=True)
    assert sorted(line for line, _ in tail.lines) == sorted(stored.stdout.decode().splitlines(keepends=True))
    tails.remove(tail)
    assert tail.end() == (130, b"")


def test_many_clients_at_once_and_a_seal_at_each_commit(serve: Serve, tails: list[Tail]) -> None:
    server = serve("--workers", "2", "--seal-bytes", "1")
    post_until(server, "first")
    tail = Tail(server.data_dir)
    tails.append(tail)
    assert wait_until(lambda: tail.clients() == ["first"], 10)

    def post(client: int) -> None:
        for number in range(100):
            post_until(server, f"report-{client}-{number}")

    threads = [threading.Thread(target=post, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for seen in (100, 400):
        assert wait_until(lambda seen=seen: len(tail.lines) > seen, 30)  # type: ignore[misc]  # a lambda with a default
        os.kill(server.find_one("writer").pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    server.stop()
    assert wait_until(lambda: len(tail.lines) >= 801, 5)
    found = [line for line, _ in tail.lines]
    assert sorted(tail.clients()) == server.stored_clients()
    assert len(server.sealed_files()) > 50
    for path in server.sealed_files():  # each file's lines stand together, in the file's order
        lines = subprocess.run(["zstd", "-dcq", str(path)], check=True, capture_output=True).stdout.decode()
        start = found.index(lines.splitlines(keepends=True)[0])
        assert "".join(found[start:]).startswith(lines)


def test_it_ends_when_nobody_reads_it_any_more(serve: Serve) -> None:
    server = serve("--workers", "1")
    tail = subprocess.Popen([NETWATCH, "tail", "-f", "--data-dir", str(server.data_dir)], stdout=subprocess.PIPE)
    assert tail.stdout
    post_until(server, "seen")
    assert b'"seen"' in tail.stdout.readline()
    tail.stdout.close()
    assert tail.wait(5) == 0
