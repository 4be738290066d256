"""FAULTS.md row 18: what cannot start says why in one sentence, soon, and exits with 1 (2: wrong settings)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import Server, report, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user or mounts")


def refusal(
    server: Server, code: int, *, environ: Mapping[str, str] | None = None, before: tuple[str, ...] = ()
) -> str:
    """The one sentence that a server which does not start leaves on stderr."""
    start_s = time.monotonic()
    server.spawn(environ=environ, before=before)
    assert server.wait(15) == code, server.log_text()
    assert time.monotonic() - start_s < 3
    assert server.stdout == b""
    assert wait_until(lambda: not server.left(), 1)
    sentences = [line for line in server.log_text().splitlines() if not line.startswith("{")]
    assert len(sentences) == 1, server.log_text()
    assert "Traceback" not in server.log_text()
    assert sentences[0].startswith("netwatch: ")
    assert sentences[0].endswith(".")
    return sentences[0]


@pytest.fixture
def as_nobody(tmp_path: Path) -> tuple[str, ...]:
    """What makes a command run as a user without rights."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory of a file system that is mounted read-only."""
    path = tmp_path / "mounted"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)], check=True)
    try:
        (path / "data").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        yield path / "data"
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_row_18_the_data_directory_is_a_file(make_server: Serve, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("mine")
    sentence = refusal(make_server(), 1)
    assert f"Cannot use the data directory {path}: Not a directory" in sentence
    assert "--data-dir" in sentence
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["open", "reports", "quarantine"])
def test_row_18_a_file_stands_in_place_of_a_folder(make_server: Serve, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text("mine")
    assert "Cannot write in the data directory" in refusal(make_server(), 1)
    assert (tmp_path / "data" / name).read_text() == "mine"


@needs_root
@pytest.mark.parametrize("exists", [True, False])
def test_row_18_the_data_directory_may_not_be_written(
    make_server: Serve, tmp_path: Path, as_nobody: tuple[str, ...], exists: bool
) -> None:
    if exists:
        (tmp_path / "data").mkdir(mode=0o755)
    sentence = refusal(make_server(), 1, before=as_nobody)
    assert "Permission denied" in sentence
    assert str(tmp_path / "data") in sentence


@needs_root
def test_row_18_the_disk_is_read_only(make_server: Serve, read_only: Path) -> None:
    assert "Read-only file system" in refusal(make_server(data_dir=read_only), 1)


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        (["--seal-after-m", "5"], {}, "--seal-after-m"),
        (["--workers", "many"], {}, "--workers cannot be 'many'"),
        (["--workers", "0"], {}, "--workers cannot be '0'"),
        (["--seal-bytes", "10 parsecs"], {}, "--seal-bytes cannot be '10 parsecs'"),
        (["--durability", "hoped-for"], {}, "--durability cannot be 'hoped-for'"),
        (["--bind", "localhost"], {}, "--bind cannot be 'localhost'"),
        ([], {"NETWATCH_SEAL_AFTER": "5"}, "NETWATCH_SEAL_AFTER,"),
        ([], {"NETWATCH_ACK_TIMEOUT_S": "soon"}, "NETWATCH_ACK_TIMEOUT_S cannot be 'soon'"),
        ([], {"NETWATCH_CONFIG": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_row_18_a_wrong_setting_is_refused_by_its_name(
    make_server: Serve, flags: list[str], environ: dict[str, str], said: str
) -> None:
    server = make_server(*flags)
    server.spawn(environ=environ)
    assert server.wait(5) == 2
    assert said in server.log_text()
    assert "Traceback" not in server.log_text()
    assert server.stdout == b""
    assert not server.data_dir.exists()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("seal_after_s = ", "is not valid TOML"),
        (f"seal_after_s = {'[' * 5000}", "is not valid TOML"),
        ("seal_after = 5\n", "'seal_after'"),
        ("workers = 'two'\n", "workers in"),
        ("[workers]\ncount = 2\n", "workers in"),
        ("commit_bytes = -1\n", "commit_bytes in"),
    ],
)
def test_row_18_a_wrong_configuration_is_refused_by_its_name(
    make_server: Serve, tmp_path: Path, toml: str, said: str
) -> None:
    config = tmp_path / "netwatch.toml"
    config.write_text(toml)
    sentence = refusal(make_server("--config", str(config)), 2)
    assert said in sentence
    assert str(config) in sentence


def test_flags_stand_over_the_environment_over_the_file_over_defaults(make_server: Serve, tmp_path: Path) -> None:
    config = tmp_path / "netwatch.toml"
    config.write_text('name = "file"\nmax_reports = 3\nmax_body_bytes = "2KiB"\n')
    server = make_server("--config", str(config), "--name", "flag")
    server.spawn(environ={"NETWATCH_NAME": "environment", "NETWATCH_MAX_REPORTS": "2"})
    server.wait_for_line()
    assert server.post(report("a"), report("b")).status == 200
    assert server.post(report("a"), report("b"), report("c")).code == "too_many_reports"
    assert server.post(b"x" * 2049).code == "body_too_large"
    server.stop()
    assert {line["server"] for line in server.stored()} == {"flag"}


@pytest.mark.soak
def test_row_18_a_port_that_stays_in_use_is_given_up_after_10_s(make_server: Serve) -> None:
    server = make_server()
    with socket.create_server(("127.0.0.1", server.port)):
        server.spawn()
        assert wait_until(lambda: server.logged("port_in_use"), 3)
        start_s = time.monotonic()
        assert server.wait(15) == 1
        assert 8 < time.monotonic() - start_s < 12
    assert f"Cannot listen on 127.0.0.1:{server.port}: Address already in use" in server.log_text()
    assert server.stdout == b""


def test_a_stop_while_it_waits_for_its_port_ends_it(make_server: Serve) -> None:
    server = make_server()
    with socket.create_server(("127.0.0.1", server.port)):
        server.spawn()
        assert wait_until(lambda: server.logged("port_in_use"), 3)
        server.send(signal.SIGTERM)
        server.wait(2)


def test_row_24_two_servers_on_one_data_directory_both_work(serve: Serve, make_server: Serve) -> None:
    """Also when one is killed and recovers beside the other, whose segments it leaves alone."""
    first = serve()
    second = make_server(data_dir=first.data_dir).start()
    for number in range(10):
        assert first.post(report(f"first {number}")).status == 200
        assert second.post(report(f"second {number}")).status == 200
    os.kill(first.find_one("writer").pid, signal.SIGKILL)
    second.kill()
    assert wait_until(lambda: first.post(report("first 10")).status == 200, 5)
    second.start()
    assert second.post(report("second 10")).status == 200
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    second.stop()
    assert second.stored_clients() == sorted(f"{name} {n}" for name in ("first", "second") for n in range(11))


def test_row_18_later_a_writer_that_cannot_start_is_tried_again(serve: Serve) -> None:
    """Its folder is gone when it is started again: 503, backoff, and 200 once the folder is back."""
    server = serve("--ack-timeout-s", "0.3")
    assert server.post(report("before")).status == 200
    server.send(signal.SIGUSR1)
    assert wait_until(server.sealed_files, 5)
    moved = server.data_dir / "moved"
    (server.data_dir / "open").rename(moved)
    (server.data_dir / "open").write_text("in the way")
    os.kill(server.find_one("writer").pid, signal.SIGKILL)
    assert server.post(report("refused")).status == 503
    assert wait_until(lambda: len(server.logged("start_failed")) >= 2, 5)
    assert server.post(report("refused")).status == 503
    (server.data_dir / "open").unlink()
    moved.rename(server.data_dir / "open")
    assert wait_until(lambda: server.post(report("after")).status == 200, 8)
    server.stop()
    assert {"before", "after"} <= set(server.stored_clients())
