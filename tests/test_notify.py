"""What systemd is told, by a server that is asked for it; from outside it is seen in tests/system/test_systemd.py."""

from __future__ import annotations

import functools
import os
import socket
import time
from pathlib import Path

import pytest

from netwatch.notify import Systemd


class Manager:
    """The other end: what it was told."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The words of all messages since the last time."""
        words = []
        while True:
            try:
                words += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return words


@pytest.mark.parametrize("is_abstract", [False, True])
def test_it_is_told_of_each_state_once(tmp_path: Path, is_abstract: bool) -> None:
    name = f"netwatch-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    manager = Manager("\0" + name if is_abstract else name)
    environ = {"NOTIFY_SOCKET": "@" + name if is_abstract else name, "HOME": "/"}
    systemd = Systemd(environ)
    assert environ == {"HOME": "/"}
    with manager.socket:
        systemd.tell("starting", lambda: "a", is_alive=True)
        assert manager.heard() == ["STATUS=a"]
        systemd.tell("READY", lambda: "b", is_alive=True)
        systemd.tell("READY", lambda: "b", is_alive=True)
        assert manager.heard() == ["READY=1", "STATUS=b"]
        before_us = time.monotonic_ns() // 1000
        systemd.tell("RELOADING", lambda: "b", is_alive=True)
        word, stamp = manager.heard()
        assert word == "RELOADING=1"
        assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        systemd.tell("READY", lambda: "b", is_alive=True)
        systemd.tell("STOPPING", lambda: "b", is_alive=True)
        assert manager.heard() == ["READY=1", "STOPPING=1"]
    systemd.close()


def test_figures_alone_are_told_now_and_then(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for number in range(100):
        systemd.tell("READY", functools.partial("{} restarts".format, number), is_alive=True)
    assert manager.heard() == ["READY=1", "STATUS=0 restarts"]
    assert systemd.renew_s == 10
    manager.socket.close()
    systemd.close()


def test_the_watchdog_hears_only_of_what_is_alive(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000", "WATCHDOG_PID": str(os.getpid())}
    systemd = Systemd(environ)
    assert environ == {}
    assert systemd.renew_s
    assert systemd.renew_s <= 0.03
    systemd.tell("READY", lambda: "", is_alive=True)
    assert "WATCHDOG=1" in manager.heard()
    time.sleep(systemd.renew_s)
    systemd.tell("READY", lambda: "", is_alive=False)
    assert manager.heard() == []
    systemd.tell("READY", lambda: "", is_alive=True)
    assert manager.heard() == ["WATCHDOG=1"]
    manager.socket.close()
    systemd.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"WATCHDOG_USEC": "1000000"},
        {"WATCHDOG_USEC": "nonsense"},
    ],
)
def test_where_nobody_listens_nothing_is_said(environ: dict[str, str]) -> None:
    systemd = Systemd(environ)
    assert systemd.renew_s is None
    systemd.tell("READY", lambda: "", is_alive=True)
    systemd.close()


def test_a_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    systemd = Systemd(
        {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000", "WATCHDOG_PID": str(os.getppid())}
    )
    systemd.tell("READY", lambda: "", is_alive=True)
    assert manager.heard() == ["READY=1"]
    manager.socket.close()
    systemd.close()


def test_a_manager_that_is_gone_or_does_not_listen_stops_nobody(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    systemd.tell("READY", lambda: "", is_alive=True)
    manager.socket.close()
    systemd.tell("RELOADING", lambda: "", is_alive=True)
    systemd.close()
    systemd.tell("STOPPING", lambda: "", is_alive=True)
