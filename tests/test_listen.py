"""The listening sockets: opened here or passed by systemd, the queue's, and where a client finds them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from netwatch import listen
from netwatch.errors import StartError


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


# The HTTP socket


@pytest.mark.parametrize(("bind", "url"), [("127.0.0.1:0", "http://127.0.0.1:{}"), ("[::1]:0", "http://[::1]:{}")])
def test_it_listens_where_it_says(bind: str, url: str) -> None:
    with listen.listen(bind) as http:
        host, port = http.getsockname()[:2]
        assert listen.url(http, is_tls=False) == url.format(port)
        assert listen.url(http, is_tls=True) == url.format(port).replace("http:", "https:")
        socket.create_connection((host, port), timeout=5).close()


def test_a_name_is_looked_up() -> None:
    with listen.listen("localhost:0") as http:
        assert http.getsockname()[0] in ("127.0.0.1", "::1")


def test_a_port_that_an_old_server_drains_is_waited_for_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    old = socket.create_server(("127.0.0.1", 0))
    port = old.getsockname()[1]
    threading.Timer(0.3, old.close).start()
    with listen.listen(f"127.0.0.1:{port}") as http:
        assert http.getsockname()[1] == port
    (entry,) = logged(capfd)
    assert (entry["level"], entry["event"], entry["bind"]) == ("warning", "port_in_use", f"127.0.0.1:{port}")


def test_a_port_that_stays_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_PORT_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=rf"Cannot listen on {bind}: .*\(--bind\)\.$") as caught:
            listen.listen(bind)
    assert caught.value.exit_code == 1


def test_a_port_with_connections_in_time_wait_is_taken_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as old:
        port = old.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = old.accept()
            accepted.close()  # first, so that it is the server's side that waits
            assert client.recv(1) == b""
    listen.listen(f"127.0.0.1:{port}").close()
    assert logged(capfd) == []


@pytest.mark.parametrize("bind", ["192.0.2.1:0", "no-such-host.invalid:80", "[::ffff]:0"])
def test_an_address_that_is_not_ours_is_refused_at_once(bind: str) -> None:
    with pytest.raises(StartError, match="Cannot listen on") as caught:
        listen.listen(bind)
    assert bind in str(caught.value)


# The Unix sockets


def test_they_are_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    previous = os.umask(0)
    try:
        with listen.private_directory() as directory, listen.open_unix(f"{directory}/queue.sock") as queue:
            path = Path(queue.getsockname())
            assert path.parent.parent == tmp_path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with socket.socket(socket.AF_UNIX) as worker:
                worker.connect(str(path))  # it waits in the backlog, whether there is a writer or not
    finally:
        os.umask(previous)
    assert list(tmp_path.iterdir()) == []


def test_without_a_runtime_directory_it_is_a_private_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with listen.private_directory() as first, listen.private_directory() as second:
        assert first != second
        assert Path(first).name.startswith(f"netwatch-{os.getpid()}-")


def test_a_runtime_directory_whose_name_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    with pytest.raises(StartError, match=r"queue\.sock"), listen.private_directory() as private:
        listen.open_unix(f"{private}/queue.sock")
    assert list(directory.iterdir()) == []


def test_a_runtime_directory_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "absent"))
    with pytest.raises(StartError, match="absent"), listen.private_directory():
        pass


def test_a_fault_while_serving_is_not_taken_for_one_of_the_directory() -> None:
    with pytest.raises(OSError, match="of another kind"), listen.private_directory():
        raise OSError(5, "of another kind")


# What systemd passes

PROGRAM = """
import os, sys
for number, fd in enumerate(sys.argv[1].split(","), 100):
    os.dup2(int(fd), number)
count = number - 99
for number in range(count):
    os.dup2(100 + number, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": sys.argv[2]}
from netwatch import listen
from netwatch.errors import StartError
try:
    found = listen.passed(os.environ)
    for role, sock in sorted(found.items()):
        print(role, sock.getsockname(), os.get_inheritable(sock.fileno()), sock.fileno())
except StartError as error:
    print(error.exit_code, error)
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def take(sockets: Sequence[socket.socket], names: str) -> list[str]:
    """What a process says that systemd started with these sockets."""
    fds = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-c", PROGRAM, ",".join(map(str, fds)), names]
    shown = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=20, check=True)
    *lines, left = shown.stdout.splitlines()
    assert left == "[]", "the children would take the sockets for theirs"
    return lines


def test_a_socket_is_taken_from_systemd_whatever_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as http:
        for names in ("netwatch.socket", ""):
            assert take([http], names) == [f"http {http.getsockname()} False 3"]


def test_the_second_one_may_be_for_the_admin() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as http,
    ):
        shown = take([admin, http], "admin:netwatch.socket")
    assert [line.split()[0] for line in shown] == ["admin", "http"]


def test_two_sockets_for_one_purpose_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        (said,) = take([one, other], "netwatch.socket:netwatch.socket")
    assert said.startswith("2 systemd passes two sockets for http")
    assert "FileDescriptorName=admin" in said


@pytest.mark.parametrize("kind", ["datagram", "not listening", "unix", "no socket"])
def test_what_is_no_listening_tcp_socket_is_refused(kind: str, tmp_path: Path) -> None:
    with (
        socket.socket(
            socket.AF_UNIX if kind == "unix" else socket.AF_INET,
            socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM,
        ) as sock,
        (tmp_path / "file").open("w") as file,
    ):
        (said,) = take([file if kind == "no socket" else sock], "netwatch.socket")  # type: ignore[list-item]
    assert said.startswith("2 What systemd passes is no ")
    assert "ListenStream=" in said


def test_sockets_that_are_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert listen.passed(environ) == {}
    assert listen.passed({}) == {}
