"""What an operator does on the first day: start, post, look, probe, stop, read with the stock tools."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import MIB, NETWATCH, Server, free_port, report, wait_until


@pytest.fixture
def other_url() -> Iterator[str]:
    """What the README probes beside the server: Python's own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port := free_port()), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    try:
        assert wait_until(answers, 10)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def cat(server: Server) -> list[str]:
    """The clientIds that `netwatch cat` prints."""
    output = subprocess.run(
        [NETWATCH, "cat", "--data-dir", str(server.data_dir)], check=True, capture_output=True, timeout=20
    )
    assert output.stderr == b""
    return [json.loads(line)["report"]["clientId"] for line in output.stdout.splitlines()]


def test_a_report_that_was_posted_is_read_by_the_stock_tools(serve: Serve) -> None:
    server = serve()
    answer = server.post(report("first"))
    assert answer.status == 200
    assert answer.json == {
        "id": answer.json["id"],
        "accepted": 1,
        "duplicates": 0,
        "rejected": 0,
        "durability": "synced",
        "errors": [],
    }
    assert server.stop() < 5
    (line,) = server.stored()
    assert line["id"] == answer.json["id"]
    assert line["report"] == report("first")
    assert list(line) == ["id", "receivedAt", "kind", "server", "report", "crc"]
    day = line["receivedAt"][:10]
    (path,) = server.sealed_files()
    assert path.parent == server.data_dir / "reports" / f"date={day}"
    assert path.name.startswith(f"reports-{line['receivedAt'][:23].replace(':', '-')}Z-")
    assert path.name.endswith(".jsonl.zst")


def test_probe_posts_what_it_measured_and_jq_reads_it(serve: Serve, other_url: str) -> None:
    server = serve()
    nobody = f"http://127.0.0.1:{free_port()}/"
    urls = [f"{server.url}/livez", other_url, nobody]
    output = subprocess.run(
        [NETWATCH, "probe", "--server", server.url, *urls], capture_output=True, text=True, timeout=20
    )
    assert (output.returncode, output.stderr) == (0, "")
    assert "200" in output.stdout
    server.stop()
    files = f"{server.data_dir}/reports/*/*.jsonl.zst"
    statuses = subprocess.run(
        ["bash", "-c", f"zstdcat {files} | jq -c '.report.hosts[] | [.url, .status, .history[0].latency > 0]'"],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout
    assert [json.loads(line) for line in statuses.splitlines()] == [
        [urls[0], "online", True],
        [urls[1], "online", True],
        [urls[2], "error", False],
    ]


def test_cat_shows_an_acked_line_at_once_wherever_it_stands(serve: Serve) -> None:
    server = serve("--seal-after-s", "600")
    server.post(report("sealed"))
    server.send(signal.SIGUSR1)
    assert wait_until(server.sealed_files, 5)
    for number in range(5):
        assert server.post(report(f"open {number}")).status == 200
        assert cat(server) == ["sealed", *[f"open {n}" for n in range(number + 1)]]
    server.stop()
    assert cat(server) == ["sealed", *[f"open {n}" for n in range(5)]]


def test_cat_into_a_pipe_that_closes_is_silent(serve: Serve) -> None:
    server = serve()
    assert server.post(*[report(f"{number}", padding_bytes=1000) for number in range(2000)]).status == 200
    output = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{NETWATCH}' cat --data-dir '{server.data_dir}' | head -1"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert output.stderr == ""
    assert json.loads(output.stdout)["report"]["clientId"] == "0"
    assert output.returncode == 0


def test_usr1_seals_at_once_and_nothing_when_there_is_nothing(serve: Serve) -> None:
    server = serve("--seal-after-s", "600")
    server.post(report("one"))
    assert server.sealed_files() == []
    start_s = time.monotonic()
    server.send(signal.SIGUSR1)
    assert wait_until(server.sealed_files, 5)
    assert time.monotonic() - start_s < 1
    server.send(signal.SIGUSR1)
    server.send(signal.SIGUSR1)
    server.post(report("two"))  # the writer has taken the signals by now
    assert len(server.sealed_files()) <= 2
    server.send(signal.SIGUSR1)
    assert wait_until(lambda: len(server.sealed_files()) == 2, 5)
    server.stop()
    assert len(server.sealed_files()) == 2
    assert server.stored_clients() == ["one", "two"]


def test_a_segment_is_sealed_by_its_age_and_by_its_size(serve: Serve) -> None:
    server = serve("--seal-after-s", "0.5", "--seal-bytes", "1MiB")
    server.post(report("old"))
    first_s = time.monotonic()
    assert wait_until(server.sealed_files, 5)
    assert 0.4 < time.monotonic() - first_s < 1.5
    server.post(*[report(f"large {number}", padding_bytes=MIB // 8) for number in range(9)])
    second_s = time.monotonic()
    assert wait_until(lambda: len(server.sealed_files()) == 2, 5, 0.005)
    assert time.monotonic() - second_s < 0.4
    server.stop()
    assert [line["reason"] for line in server.logged("segment_sealed")] == ["age", "size"]


def test_no_file_after_an_idle_time_or_a_stop_without_reports(serve: Serve) -> None:
    server = serve("--seal-after-s", "0.05")
    server.ask("GET", "/readyz")
    server.post({"clientId": 5})
    server.post(b"[]")
    assert not wait_until(server.sealed_files, 1.0)  # 20 times the age at which one would be sealed
    server.stop()
    assert server.sealed_files() == []
    assert os.listdir(server.data_dir / "reports") == []
    assert os.listdir(server.data_dir / "quarantine") == []


def test_directories_are_0750_and_files_0640_whatever_the_umask(serve: Serve, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = serve(data_dir=tmp_path / "made" / "data")
    finally:
        os.umask(before)
    server.post(report("sealed"))
    server.send(signal.SIGUSR1)
    assert wait_until(server.sealed_files, 5)
    server.post(report("left open by a kill"))
    server.kill()
    server.start()
    server.post(report("open"))

    def modes() -> set[tuple[str, int]]:
        below = [server.data_dir.parent, *server.data_dir.parent.rglob("*")]
        return {("directory" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)) for path in below}

    assert len(server.open_files()) >= 2
    assert modes() == {("directory", 0o750), ("file", 0o640)}
    server.stop()
    assert len(server.sealed_files()) == 3
    assert modes() == {("directory", 0o750), ("file", 0o640)}


def test_every_process_says_what_it_is(serve: Serve) -> None:
    server = serve("--workers", "2")
    assert wait_until(lambda: len(server.find("worker")) == 2, 5)
    below = {process.title for process in server.processes()}
    assert below == {"netwatch: supervisor", "netwatch: writer", "netwatch: gunicorn", "netwatch: worker"}
    assert server.find_one("supervisor").pid == server.pid
    writer, gunicorn = server.find_one("writer"), server.find_one("gunicorn")
    parents = {
        process.pid: int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        for process in server.processes()
    }
    assert parents[writer.pid] == parents[gunicorn.pid] == server.pid
    assert {parents[worker.pid] for worker in server.find("worker")} == {gunicorn.pid}


def test_stdout_has_one_line_and_stderr_json_lines_only(serve: Serve) -> None:
    server = serve()
    server.post(report("one"))
    server.post(b"{")
    server.ask("GET", "/nothing")
    with server.connect() as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        connection.recv(4096)
    os.kill(server.find_one("writer").pid, signal.SIGKILL)
    os.kill(server.find("worker")[0].pid, signal.SIGKILL)
    assert wait_until(lambda: server.post(report("two")).status == 200, 5)
    server.stop()
    assert server.stdout.count(b"\n") == 1
    events = server.logged()
    assert all({"time", "level", "event", "pid"} <= set(event) for event in events)
    assert [event for event in events if event["level"] == "error" and event["event"] != "library"] == []


def test_port_0_is_a_free_port_that_the_line_names(make_server: Serve) -> None:
    server = make_server()
    command = [NETWATCH, "serve", "--bind", "127.0.0.1:0", "--data-dir", str(server.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line.startswith("netwatch: listening on http://127.0.0.1:")
            server.port = int(line.partition(", writing")[0].rpartition(":")[2])
            assert server.post(report("one")).status == 200
        finally:
            process.terminate()
        assert process.wait(10) == 0
