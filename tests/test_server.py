"""The supervisor's parts that need no processes; the whole of it is seen from outside in tests/system."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from netwatch import server
from netwatch.errors import StartError


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


# The HTTP socket


@pytest.mark.parametrize(("bind", "url"), [("127.0.0.1:0", "http://127.0.0.1:{}"), ("[::1]:0", "http://[::1]:{}")])
def test_it_listens_where_it_says(bind: str, url: str) -> None:
    with server._listen(bind) as http:
        host, port = http.getsockname()[:2]
        assert server._url(http, is_tls=False) == url.format(port)
        assert server._url(http, is_tls=True) == url.format(port).replace("http:", "https:")
        socket.create_connection((host, port), timeout=5).close()


def test_a_name_is_looked_up() -> None:
    with server._listen("localhost:0") as http:
        assert http.getsockname()[0] in ("127.0.0.1", "::1")


def test_a_port_that_an_old_server_drains_is_waited_for_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    old = socket.create_server(("127.0.0.1", 0))
    port = old.getsockname()[1]
    threading.Timer(0.3, old.close).start()
    with server._listen(f"127.0.0.1:{port}") as http:
        assert http.getsockname()[1] == port
    (entry,) = logged(capfd)
    assert (entry["level"], entry["event"], entry["bind"]) == ("warning", "port_in_use", f"127.0.0.1:{port}")


def test_a_port_that_stays_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PORT_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=rf"Cannot listen on {bind}: .*\(--bind\)\.$") as caught:
            server._listen(bind)
    assert caught.value.exit_code == 1


def test_a_port_with_connections_in_time_wait_is_taken_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as old:
        port = old.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = old.accept()
            accepted.close()  # first, so that it is the server's side that waits
            assert client.recv(1) == b""
    server._listen(f"127.0.0.1:{port}").close()
    assert logged(capfd) == []


@pytest.mark.parametrize("bind", ["192.0.2.1:0", "no-such-host.invalid:80", "[::ffff]:0"])
def test_an_address_that_is_not_ours_is_refused_at_once(bind: str) -> None:
    with pytest.raises(StartError, match="Cannot listen on") as caught:
        server._listen(bind)
    assert bind in str(caught.value)


# The queue's socket


def test_the_queues_socket_is_for_this_user_only_and_goes_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    previous = os.umask(0)
    try:
        with server._open_queue() as queue:
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
    with server._open_queue() as first, server._open_queue() as second:
        assert first.getsockname() != second.getsockname()
        assert Path(first.getsockname()).is_socket()


def test_a_runtime_directory_whose_name_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    with pytest.raises(StartError, match="queue's socket"), server._open_queue():
        pass
    assert list(directory.iterdir()) == []


def test_a_runtime_directory_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "absent"))
    with pytest.raises(StartError, match="absent"), server._open_queue():
        pass


def test_a_fault_while_serving_is_not_taken_for_one_of_the_queue() -> None:
    with pytest.raises(OSError, match="of another kind"), server._open_queue():
        raise OSError(5, "of another kind")


# The data directory


@pytest.mark.parametrize(
    ("kind", "is_unsafe"),
    [
        ("ext4", False), ("xfs", False), ("btrfs", False), ("zfs", False), ("", False), ("fuseblk", False),
        ("tmpfs", True), ("ramfs", True), ("overlay", True), ("nfs", True), ("nfs4", True), ("cifs", True),
        ("fuse", True), ("fuse.sshfs", True),
    ],
)  # fmt: skip
def test_a_file_system_that_cannot_keep_the_promise_is_warned_of(
    kind: str, is_unsafe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "file_system", lambda _: kind)
    os.close(server._open_root(tmp_path / "data"))
    entries = logged(capfd)
    assert bool(entries) == is_unsafe
    if is_unsafe:
        (entry,) = entries
        assert (entry["level"], entry["event"], entry["file_system"]) == ("warning", "unsafe_file_system", kind)
        assert entry["data_dir"] == str(tmp_path / "data")
        assert entry["why"]


def test_the_data_directory_is_made_with_its_mode(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        root = server._open_root(tmp_path / "a" / "b")
    finally:
        os.umask(previous)
    try:
        assert stat.S_IMODE(os.fstat(root).st_mode) == 0o750
    finally:
        os.close(root)


def test_a_file_in_place_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    for path in (tmp_path / "data", tmp_path / "data" / "below"):
        with pytest.raises(StartError, match=r"Cannot use the data directory .*\(--data-dir\)\.$") as caught:
            server._open_root(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 1
