"""`netwatch status` against a live server: what it shows is what was done, and why the server is not ready."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

from tests.system.conftest import Serve
from tests.system.server import NETWATCH, Server, report, wait_until

TOKEN = "0123456789abcdef"


def status(server: Server, *options: str) -> tuple[int, dict[str, str], str]:
    """The exit code, each row by its name, and what it said on stderr."""
    shown = subprocess.run(
        [NETWATCH, "status", "--server", server.url, "--interval-s", "0.2", *options],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    rows = {line[:12].strip(): line[12:] for line in shown.stdout.splitlines()}
    return shown.returncode, rows, shown.stderr


def test_it_shows_what_was_done(serve: Serve) -> None:
    server = serve("--workers", "2", "--seal-bytes", "1")
    for number in range(7):
        assert server.post(report(f"report-{number}")).status == 200
    assert server.post(b"{").status == 400
    assert wait_until(lambda: status(server)[1]["segments"].startswith("0 open"), 10)
    code, rows, said = status(server)
    assert (code, said) == (0, "")
    assert rows["server"].endswith("ready")
    assert rows["processes"].startswith("2 workers, up ")
    assert rows["reports"].startswith("8 received, 7 stored, 0 duplicate, 1 rejected, 0 shed, 0 unknown")
    assert re.search(r"[1-7] sealed, the last [0-9.]+ s ago; compressed [0-9.]+ times", rows["segments"])
    assert "reserve 0.2 GiB" in rows["disk"]
    assert rows["quarantine"] == "0 files"
    assert rows["errors"] == "400 invalid_json 1"


def test_it_says_why_the_server_is_not_ready_and_ends_with_1(serve: Serve) -> None:
    server = serve("--workers", "1", "--min-free-bytes", "1000000GiB")
    assert server.post(report("refused")).code == "disk_full"
    assert wait_until(lambda: status(server)[0] == 1, 10)
    _, rows, _ = status(server)
    assert "NOT READY: disk_full" in rows["server"]
    assert "503 disk_full 1" in rows["errors"]


def test_a_writer_that_died_is_counted(serve: Serve) -> None:
    server = serve("--workers", "1")
    os.kill(server.find_one("writer").pid, signal.SIGKILL)
    assert wait_until(lambda: "1 deaths" in status(server)[1]["processes"], 10)


def test_a_server_with_tokens_wants_one(serve: Serve, tmp_path: Path) -> None:
    server = serve("--workers", "1", "--tokens", f"operator:{TOKEN}")
    code, _, said = status(server)
    assert code == 1
    assert "--token-file" in said
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert status(server, "--token-file", str(tmp_path / "token"))[0] == 0
    assert status(server, "--token-file", str(tmp_path / "absent"))[0] == 2


def test_where_no_server_answers_it_says_so(make_server: Serve) -> None:
    code, rows, said = status(make_server())
    assert (code, rows) == (1, {})
    assert "Is the server running there?" in said


def test_it_watches_on(serve: Serve) -> None:
    server = serve("--workers", "1")
    watching = subprocess.Popen(
        [NETWATCH, "status", "--server", server.url, "--interval-s", "0.1", "--watch"], stdout=subprocess.PIPE
    )
    assert watching.stdout
    for begins in (b"server ", b"server ", b"No answer from ", b"server "):
        if begins == b"No answer from ":
            server.kill()
        while not (line := watching.stdout.readline()).startswith(begins):
            assert line, "it has ended"
        if begins == b"No answer from ":
            server.start()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 130
    watching.stdout.close()
