"""Gunicorn and its workers as the supervisor runs them, on a socket that they inherit, without a writer at first."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netwatch.http.protocol import ANSWER_S, Protocol, protocol_settings
from netwatch.settings import Settings
from tests.http.door import PATH, REPORT

PROGRAM = """
import os, sys
from pathlib import Path
from netwatch.http import worker
from netwatch.metrics.board import Board
from netwatch.settings import Settings
os.environ["NOTIFY_SOCKET"] = sys.argv[3]
settings = Settings(workers=2, drain_timeout_s=0.5, ack_timeout_s=0.5)
worker.run(settings, int(sys.argv[1]), sys.argv[2], Board(), print)
"""


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class Workers:
    """Gunicorn with two workers; `log` is what they have logged so far."""

    def __init__(self, directory: Path) -> None:
        self.queue_path = str(directory / "queue.sock")
        self.notify_path = str(directory / "notify.sock")
        self._stderr = directory / "stderr"
        with socket.create_server(("127.0.0.1", 0)) as listener, self._stderr.open("ab") as stderr:
            self.address = listener.getsockname()
            fd = listener.fileno()
            self.master = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(fd), self.queue_path, self.notify_path],
                pass_fds=[fd],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        until(lambda: len(self.pids) == 2)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stderr.read_text("utf-8").splitlines(keepends=True) if "\n" in line]

    @property
    def pids(self) -> list[int]:
        started = [entry["pid"] for entry in self.log if entry["event"] == "worker_started"]
        return [pid for pid in started if Path(f"/proc/{pid}").exists()]

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        with socket.create_connection(self.address, timeout=10) as client:
            framing = "" if body is None else f"Content-Length: {len(body)}\r\n"
            method = "GET" if body is None else "POST"
            client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}\r\n".encode())
            client.sendall(body or b"")
            received = b""
            while data := client.recv(65536):
                received += data
        head, _, answer = received.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(answer)

    def end(self) -> None:
        for pid in (self.master.pid, *self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.master.wait(10)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    running = Workers(tmp_path)
    yield running
    running.end()


def answer_batches(listener: socket.socket) -> None:
    """Be a writer that stores everything, for each link that comes."""

    def serve(link: socket.socket) -> None:
        with link, link.makefile("rb") as stream, contextlib.suppress(OSError):
            stream.read(20)
            link.sendall(struct.pack("<QBI", 0, 0, 0))
            while header := stream.read(21):
                size, number, _, _ = struct.unpack("<IQQB", header)
                stream.read(size)
                link.sendall(struct.pack("<QBI", number, 0, 0))

    while True:
        try:
            link, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(link,), daemon=True).start()


def test_workers_start_without_a_writer_and_serve_once_there_is_one(workers: Workers) -> None:
    assert title_of(workers.master.pid) == "netwatch: gunicorn"
    assert [title_of(pid) for pid in workers.pids] == ["netwatch: worker"] * 2
    assert workers.ask("/livez") == (200, {"status": "ok"})
    status, answer = workers.ask("/readyz")
    assert (status, [reason["code"] for reason in answer["reasons"]]) == (503, ["writer_away"])
    status, answer = workers.ask(PATH, REPORT)
    assert (status, answer["type"]) == (503, "urn:netwatch:error:ack_timeout")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(workers.queue_path)
        listener.listen()
        threading.Thread(target=answer_batches, args=(listener,), daemon=True).start()
        until(lambda: workers.ask("/readyz")[0] == 200)
        status, answer = workers.ask(PATH, REPORT)
        assert (status, answer["accepted"]) == (200, 1)

        began_s = time.monotonic()
        workers.master.terminate()
        assert workers.master.wait(10) == 0
        assert time.monotonic() - began_s < 2
        listener.shutdown(socket.SHUT_RDWR)
    (refused,) = [entry for entry in workers.log if entry["level"] != "info"]
    assert (refused["event"], refused["code"]) == ("request_refused", "ack_timeout")


def test_row_3_workers_drain_and_end_when_their_master_is_killed(workers: Workers) -> None:
    workers.master.kill()
    workers.master.wait(10)
    until(lambda: not workers.pids, 5)


def test_row_1_a_worker_that_is_killed_is_replaced(workers: Workers) -> None:
    first, second = workers.pids
    os.kill(first, signal.SIGKILL)
    until(lambda: len(workers.pids) == 2 and first not in workers.pids)
    assert second in workers.pids
    assert workers.ask("/livez")[0] == 200
    assert title_of(workers.master.pid) == "netwatch: gunicorn"


def test_gunicorn_says_nothing_to_systemd(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify.sock"))
        running = Workers(tmp_path)
        try:
            assert running.ask("/livez")[0] == 200
            assert select.select([systemd], [], [], 0)[0] == []
        finally:
            running.end()


@pytest.mark.parametrize("drain_timeout_s", [0.0, 3.0])
def test_the_protocol_is_ours_and_leaves_time_for_the_last_answers(drain_timeout_s: float) -> None:
    settings = protocol_settings(Settings(workers=1, drain_timeout_s=drain_timeout_s))
    assert issubclass(settings["http"], Protocol)
    assert settings["timeout_graceful_shutdown"] == drain_timeout_s + ANSWER_S
    assert (settings["ws"], settings["access_log"], settings["proxy_headers"]) == ("none", False, False)


def test_deadlines_and_the_workers_share_of_connections_are_settings() -> None:
    settings = Settings(workers=3, header_timeout_s=1, body_timeout_s=2, idle_timeout_s=3, max_connections=10)
    chosen = protocol_settings(settings)
    protocol = chosen["http"]
    assert (protocol.header_timeout_s, protocol.body_timeout_s, protocol.idle_timeout_s) == (1, 2, 3)
    assert protocol.max_connections == 3
    assert protocol_settings(Settings(workers=4, max_connections=1))["http"].max_connections == 1
