"""Each check of ``/readyz?verbose``, with the thing broken for real."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.system.conftest import Serve
from tests.system.server import Server, report, wait_until
from tests.system.test_disk import fill, small_disk

__all__ = ["small_disk"]  # a fixture


def checks(server: Server) -> tuple[int, dict[str, Any]]:
    """The status, and the checks by name."""
    answer = server.ask("GET", "/readyz?verbose")
    assert (answer.status == 200) == all(check["ok"] for check in answer.json["checks"])
    return answer.status, {check["name"]: check for check in answer.json["checks"]}


def broken(server: Server, name: str) -> dict[str, Any]:
    """Wait until the check fails; it."""

    def look() -> dict[str, Any]:
        status, found = checks(server)
        check: dict[str, Any] = found[name]
        return {} if check["ok"] else {"status": status, **check}

    seen = wait_until(look, 8)
    assert seen, checks(server)
    assert seen["status"] == 503
    return seen


def well(server: Server) -> bool:
    return wait_until(lambda: checks(server)[0] == 200, 10)


def test_writer_and_batch(serve: Serve) -> None:
    """A frozen writer shows no life; with a report sent to it, a batch waits, too."""
    server = serve("--workers", "1", "--ack-timeout-s", "30")
    status, found = checks(server)
    assert (status, found["writer"]["sign_of_life_age_s"] < 3, found["batch"]["oldest_without_ack_s"]) == (200, True, 0)
    writer = server.find_one("writer").pid
    os.kill(writer, signal.SIGSTOP)
    try:
        with server.connect(30) as client:
            body = b'{"clientId":"late","hosts":[]}'
            client.sendall(
                b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert broken(server, "writer")["sign_of_life_age_s"] > 3
            assert broken(server, "batch")["oldest_without_ack_s"] > 3
            assert server.ask("GET", "/livez").status == 200
            os.kill(writer, signal.SIGCONT)
            assert client.recv(15) == b"HTTP/1.1 200 OK"
    finally:
        os.kill(writer, signal.SIGCONT)
    assert well(server)


def test_disk(serve: Serve, small_disk: Path) -> None:
    server = serve("--workers", "1", "--min-free-bytes", "4MiB", data_dir=small_disk)
    assert checks(server)[0] == 200
    filler = fill(small_disk.parent, 3 * 1024 * 1024)
    check = broken(server, "disk")
    assert check["free_bytes"] < check["reserve_bytes"] == 4 * 1024 * 1024
    filler.unlink()
    assert well(server)


def test_fdatasync(serve: Serve) -> None:
    """One that takes 4 s, which its client still waits for."""
    server = serve("--workers", "1", "--ack-timeout-s", "10")
    assert server.post(report("fast")).status == 200
    writer = server.find_one("writer").pid
    command = [
        "strace",
        "-qq",
        "-p",
        str(writer),
        "-e",
        "trace=fdatasync",
        "-o",
        str(server.log.with_suffix(".strace")),
    ]
    with subprocess.Popen([*command, "-e", "inject=fdatasync:delay_enter=4000000:when=1"]) as strace:
        try:
            assert wait_until(lambda: b"TracerPid:\t0\n" not in Path(f"/proc/{writer}/status").read_bytes(), 5)
            assert server.post(report("slow"), timeout_s=20).status == 200
            assert broken(server, "fdatasync")["last_s"] > 3
        finally:
            strace.send_signal(signal.SIGINT)
    assert well(server)


def test_drain(serve: Serve) -> None:
    """A monitor that keeps its connection is told; new ones are refused."""
    server = serve("--workers", "1", "--drain-timeout-s", "3")
    with server.connect() as stalled, server.connect() as monitor:
        stalled.sendall(b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        ask = b"GET /readyz?verbose HTTP/1.1\r\nHost: x\r\n\r\n"
        monitor.sendall(ask)
        assert monitor.recv(65536).startswith(b"HTTP/1.1 200 ")
        server.send(signal.SIGTERM)
        assert wait_until(lambda: server.logged("draining"), 5)
        monitor.sendall(ask)
        answer = monitor.recv(65536)
    assert server.wait() == 0
    if answer.startswith(b"HTTP/1.1 503 "):  # else the worker has not yet been told
        assert b'{"name": "drain", "ok": false}' in answer


def test_quarantine_is_a_figure_and_no_reason(serve: Serve) -> None:
    """A damaged leftover is set aside at the start, told and counted; the server takes reports."""
    server = serve("--workers", "1", "--seal-after-s", "600")
    for number in range(3):
        assert server.post(report(str(number))).status == 200
    server.kill()
    (path,) = [
        server.data_dir / "open" / name
        for name in server.open_files()
        if (server.data_dir / "open" / name).stat().st_size
    ]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    server.start()
    assert wait_until(lambda: checks(server)[1]["quarantine"]["files"] == 1, 5)
    assert checks(server)[0] == 200
    text = server.ask("GET", "/metrics").body.decode()
    assert "\nnetwatch_quarantine_files 1\n" in text
    assert "\nnetwatch_quarantined_files_total 1\n" in text
    assert f"\nnetwatch_quarantined_bytes_total {len(content)}\n" in text
    for moved in (server.data_dir / "quarantine").iterdir():
        moved.unlink()
    assert wait_until(lambda: checks(server)[1]["quarantine"]["files"] == 0, 5)
    server.stop()


def test_version(serve: Serve) -> None:
    server = serve("--workers", "1")
    assert server.ask("GET", "/version").json["version"]
