"""What a service manager gives and hears: the notify socket, the watchdog, and the listening socket that it holds."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import Server, free_port, report, wait_until

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "netwatch.socket"}
os.execv(sys.argv[2], sys.argv[2:])
"""
# The 120 s after which a silent writer keeps the watchdog waiting are too many for a test.
SOON = """
import sys
from netwatch import cli, server
server._WRITER_ALIVE_S = 2.0
sys.exit(cli.main(sys.argv[2:]))
"""


class Manager:
    """Hears what is said on the notify socket: (who, word), in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self._said: list[tuple[int, str]] = []

    def said(self) -> list[tuple[int, str]]:
        """All that was said."""
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return self._said
            ((_, _, credentials),) = ancillary
            (pid, _, _) = struct.unpack("iii", credentials)
            self._said += [(pid, word) for word in data.decode().split("\n")]

    def words(self) -> list[str]:
        return [word for _, word in self.said() if not word.startswith(("STATUS=", "WATCHDOG=", "MONOTONIC_USEC="))]

    def count(self, word: str) -> int:
        return [said for _, said in self.said()].count(word)

    @property
    def environ(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path)}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


def test_it_hears_of_each_state_from_the_supervisor_alone(make_server: Serve, manager: Manager) -> None:
    server = make_server("--workers", "2")
    server.spawn(environ=manager.environ)
    assert wait_until(lambda: "READY=1" in manager.words(), 10)
    assert server.post(report("one")).status == 200  # at once
    assert server.ask("GET", "/readyz").status == 200
    server.wait_for_line()
    server.send(signal.SIGHUP)
    assert wait_until(lambda: manager.count("READY=1") == 2, 10)
    server.processes()
    server.stop()
    assert manager.words() == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert {pid for pid, _ in manager.said()} == {server.pid}
    assert any(word.startswith(f"STATUS=Serving on {server.url}: 2 workers") for _, word in manager.said())


def test_what_cannot_start_is_never_ready(make_server: Serve, manager: Manager, tmp_path: Path) -> None:
    server = make_server()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "open").write_text("in the way")
    server.spawn(environ=manager.environ)
    assert server.wait() == 1
    assert "READY=1" not in manager.words()


def test_a_bad_reload_ends_as_ready_again(make_server: Serve, manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "netwatch.toml"
    config.write_text("workers = 1\n")
    server = make_server("--config", str(config))
    server.spawn(environ=manager.environ)
    server.wait_for_line()
    config.write_text("nonsense\n")
    server.send(signal.SIGHUP)
    assert wait_until(lambda: manager.words() == ["READY=1", "RELOADING=1", "READY=1"], 10)
    server.stop()


def test_the_watchdog_hears_until_the_writer_shows_no_life(make_server: Serve, manager: Manager) -> None:
    server = make_server("--workers", "1")
    server.spawn(environ={**manager.environ, "WATCHDOG_USEC": "600000"}, before=(sys.executable, "-c", SOON))
    server.wait_for_line()
    until_s = time.monotonic() + 2.5
    while time.monotonic() < until_s:  # it is heard in every interval
        before = manager.count("WATCHDOG=1")
        assert wait_until(lambda: manager.count("WATCHDOG=1") > before, 0.6)  # noqa: B023  # it is awaited here
    writer = server.find_one("writer").pid
    os.kill(writer, signal.SIGSTOP)
    assert wait_until(lambda: is_silent(manager), 10)
    os.kill(writer, signal.SIGKILL)  # a new one shows life at once
    before = manager.count("WATCHDOG=1")
    assert wait_until(lambda: manager.count("WATCHDOG=1") > before, 5)
    server.stop()


def is_silent(manager: Manager) -> bool:
    before = manager.count("WATCHDOG=1")
    return not wait_until(lambda: manager.count("WATCHDOG=1") > before, 1.2)


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """The listening socket that systemd would hold."""
    with socket.create_server(("127.0.0.1", free_port()), backlog=2048) as held:
        yield held


def activate(server: Server, held: socket.socket) -> Server:
    server.port = held.getsockname()[1]
    server.url = f"http://127.0.0.1:{server.port}"
    number = str(held.fileno())
    server.spawn(before=(sys.executable, "-c", ACTIVATE, number), pass_fds=[held.fileno()])
    server.wait_for_line()
    return server


def test_a_passed_socket_is_served_instead_of_bind(make_server: Serve, held: socket.socket) -> None:
    server = make_server("--workers", "1")
    waiting = threading.Thread(target=lambda: server.post(report("early")))
    server.port = held.getsockname()[1]
    waiting.start()  # before there is a server
    activate(server, held)
    waiting.join()
    assert server.logged("socket_passed")[0]["address"] == server.url
    server.stop()
    assert server.stored_clients() == ["early"]


def test_a_restart_on_a_held_socket_refuses_no_connection(make_server: Serve, held: socket.socket) -> None:
    """What comes while no server accepts waits in the backlog for the next one; nothing is reset, nothing lost."""
    server = activate(make_server("--workers", "2"), held)
    outcomes: Counter[int | str] = Counter()
    is_over = threading.Event()

    def post() -> None:
        while not is_over.is_set():
            try:
                outcomes[server.post(report("one"), timeout_s=30).status] += 1
            except OSError as error:
                outcomes[repr(error)] += 1

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(5):
        before = outcomes[200]
        assert wait_until(lambda: outcomes[200] > before + 8, 10)  # noqa: B023  # it is awaited here
        if number % 2:
            server.send(signal.SIGHUP)
        server.stop()
        activate(server, held)
    is_over.set()
    for thread in threads:
        thread.join()
    assert list(outcomes) == [200], outcomes
    server.stop()
    assert len(server.stored_clients()) == outcomes[200]
