"""A log that nobody reads stops no process: the server stores, replaces what dies, reloads and ends as ever."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

from tests.system.server import NETWATCH, Server, report, wait_until

F_SETPIPE_SZ = 1031


def is_replaced(server: Server, role: str, pid: int) -> bool:
    pids = [process.pid for process in server.find(role)]
    return bool(pids) and pid not in pids


def test_a_log_pipe_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", tmp_path / "unused.log", "--workers", "2", "--access-log-sample", "1")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    try:
        bind = ["--bind", f"127.0.0.1:{server.port}", "--data-dir", str(server.data_dir)]
        server._process = subprocess.Popen(
            [NETWATCH, "serve", *bind, *server.flags], stdout=subprocess.PIPE, stderr=writer, start_new_session=True
        )
        server.log.touch()
        server.wait_for_line()
        for number in range(200):  # each is logged, and the pipe takes some twenty
            assert server.post(report(str(number))).status == 200
        for role in ("worker", "writer", "gunicorn"):
            killed = server.find(role)[0].pid
            os.kill(killed, signal.SIGKILL)
            assert wait_until(lambda: is_replaced(server, role, killed), 10)  # noqa: B023 - it is called at once
            assert wait_until(lambda: server.post(report("again")).status == 200, 10)
        before = server.find_one("gunicorn").pid
        server.send(signal.SIGHUP)
        assert wait_until(lambda: is_replaced(server, "gunicorn", before), 10)
        server.send(signal.SIGUSR1)
        assert wait_until(server.sealed_files, 10)
        assert server.stop() < 5
        os.close(writer)
        writer = -1
        logged = os.read(reader, 65536)
        assert logged.endswith(b"\n"), "lines are dropped whole"
    finally:
        server.end()
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    assert len(server.stored_clients()) >= 203
