"""FAULTS.md row 17: every way to stop a server, whatever it is doing, drains it, seals all and exits with 0 soon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import NETWATCH, STOP_S, Answer, Server, read_answer, report, wait_until

HEAD = b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def is_refused(server: Server) -> bool:
    """Whether a new connection is refused: nobody listens any more."""
    try:
        server.connect(1).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it met the socket in the instant of its closing: the next one is refused
        return False
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_row_17_one_signal_drains_seals_and_exits_with_0(serve: Serve, number: int) -> None:
    server = serve()
    assert server.post(report("one")).status == 200
    assert server.stop(number) < 2
    assert server.stored_clients() == ["one"]


def ctrl_c(server: Server) -> None:
    os.killpg(server.pid, signal.SIGINT)


def term_twice(server: Server) -> None:
    server.send(signal.SIGTERM)
    time.sleep(0.02)
    server.send(signal.SIGTERM)


def all_at_once(server: Server) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        server.send(number)


@pytest.mark.parametrize("stop", [ctrl_c, term_twice, all_at_once])
def test_row_17_signals_to_the_whole_group_or_again_change_nothing(
    serve: Serve, stop: Callable[[Server], None]
) -> None:
    server = serve()
    assert server.post(report("one")).status == 200
    start_s = time.monotonic()
    stop(server)
    assert server.wait() == 0
    assert time.monotonic() - start_s < 2
    assert wait_until(lambda: not server.left(), 1)
    assert server.stored_clients() == ["one"]
    assert server.open_files() == []


def test_row_17_a_worker_that_gets_term_the_moment_it_is_forked_ends(serve: Serve) -> None:
    """Gunicorn's handlers, which it has until it sets its own, would lose the signal, and the stop would take 5 s."""
    server = serve("--workers", "1")
    children = Path(f"/proc/{server.find_one('gunicorn').pid}/task/{server.find_one('gunicorn').pid}/children")
    seen = {server.find_one("worker").pid}
    os.kill(seen.copy().pop(), signal.SIGTERM)
    for _ in range(10):
        (pid,) = wait_until(lambda: {int(pid) for pid in children.read_text().split()} - seen, 5, 0)
        os.kill(pid, signal.SIGTERM)
        seen.add(pid)
    assert wait_until(lambda: {int(pid) for pid in children.read_text().split()} - seen, 5)
    assert wait_until(lambda: server.post(report("one")).status == 200, 5)
    assert server.stop() < 2


def accepted(server: Server) -> int:
    """How many connections the server has taken; one that the kernel still holds is reset when the socket is closed."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [(row[3], int(row[4].partition(":")[2], 16)) for row in rows if row[1].endswith(f":{server.port:04X}")]
    return sum(state == "01" for state, _ in ours) - sum(waiting for state, waiting in ours if state == "0A")


def test_row_17_stop_with_64_mib_in_flight_and_a_client_stalled_in_its_body(serve: Serve) -> None:
    """The listening socket is closed first; what was read whole is answered; what is not there in time is cut off."""
    server = serve("--workers", "2")
    bodies = [
        b"\n".join(
            b'{"clientId":"%d-%d","hosts":[],"padding":"%b"}' % (client, number, b"x" * 100_000) for number in range(40)
        )
        for client in range(16)
    ]
    answers: dict[int, int | str] = {}

    def post(client: int) -> None:
        try:
            answers[client] = server.ask(
                "POST", "/api/v1/reports", bodies[client], {"Content-Type": "application/x-ndjson"}
            ).status
        except (OSError, ValueError) as error:
            answers[client] = repr(error)

    with server.connect() as stalled:
        stalled.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"clientId":"stalled","hosts":[')
        threads = [threading.Thread(target=post, args=(client,)) for client in range(16)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: accepted(server) + len(answers) > len(threads), 5, 0.001)
        # some are sent, some are read, some are stored: whatever it is, they are not cut
        start_s = time.monotonic()
        server.processes()
        server.send(signal.SIGTERM)
        assert wait_until(lambda: is_refused(server), 1.0, 0.01)
        assert time.monotonic() - start_s < 1
        assert server.wait() == 0
        assert time.monotonic() - start_s < STOP_S
        for thread in threads:
            thread.join()
    assert server.open_files() == []
    assert wait_until(lambda: not server.left(), 1)
    stored = server.stored_clients()
    for client in range(16):
        assert answers[client] in (200, 503), answers
        of_client = [name for name in stored if name.startswith(f"{client}-")]
        assert len(of_client) == (40 if answers[client] == 200 else 0)
    assert list(answers.values()).count(200) >= 8
    assert "stalled" not in stored


def test_row_17_stop_with_a_body_that_comes_slowly_but_in_time_answers_it(serve: Serve) -> None:
    server = serve()
    body = b'{"clientId":"slow","hosts":[]}'
    with server.connect() as slow:
        slow.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
        wait_until(lambda: False, 0.2)  # the worker reads it
        server.processes()
        server.send(signal.SIGTERM)
        assert wait_until(lambda: is_refused(server), 2)
        slow.sendall(body[10:])
        answer = read_answer(slow)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert slow.recv(1) == b""
    assert server.wait() == 0
    assert server.stored_clients() == ["slow"]


def test_row_17_an_idle_keep_alive_client_may_send_one_more_and_is_not_cut(serve: Serve) -> None:
    server = serve("--workers", "1")
    body = b'{"clientId":"%d","hosts":[]}'

    def post(connection: socket.socket, number: int) -> Answer:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body % number) + body % number)
        return read_answer(connection)

    with server.connect() as busy, server.connect() as idle:
        assert "connection" not in post(busy, 1).headers
        assert "connection" not in post(idle, 2).headers
        server.processes()
        server.send(signal.SIGTERM)
        assert wait_until(lambda: is_refused(server), 2)
        answer = post(busy, 3)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert busy.recv(1) == b""
        assert idle.recv(1) == b""
    assert server.wait() == 0
    assert server.stored_clients() == ["1", "2", "3"]


def test_row_17_readiness_says_that_it_drains(serve: Serve) -> None:
    server = serve("--workers", "1")
    with server.connect() as client:
        ask = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
        client.sendall(ask)
        assert read_answer(client).status == 200
        server.send(signal.SIGTERM)
        assert wait_until(lambda: is_refused(server), 2)
        client.sendall(ask)
        answer = read_answer(client)
        assert (answer.status, [reason["code"] for reason in answer.json["reasons"]]) == (503, ["draining"])
    assert server.wait() == 0


def test_row_17_a_frozen_worker_does_not_keep_the_server(serve: Serve) -> None:
    server = serve("--workers", "2", "--drain-timeout-s", "0")
    server.post(report("one"))
    assert wait_until(lambda: len(server.find("worker")) == 2, 5)
    os.kill(server.find("worker")[0].pid, signal.SIGSTOP)
    assert server.stop() < 4
    assert server.stored_clients() == ["one"]


def test_a_restart_on_the_same_port_waits_until_the_old_server_has_gone(serve: Serve, make_server: Serve) -> None:
    """Two servers on one data directory and one port (row 24): the second says that it waits, and takes over."""
    server = serve()
    successor = make_server()
    successor.port, successor.url = server.port, server.url
    assert server.post(report("one")).status == 200
    successor.spawn()
    assert wait_until(lambda: "port_in_use" in successor.log_text(), 5)
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    successor.wait_for_line(3)
    assert successor.post(report("two")).status == 200
    successor.stop()
    assert successor.stored_clients() == ["one", "two"]


def test_a_server_whose_output_cannot_be_written_serves_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [NETWATCH, "serve", "--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--workers", "1"]
    with log.open("wb") as errors, Path("/dev/full").open("wb") as full:
        server = subprocess.Popen(command, stdout=full, stderr=errors)
    try:
        assert wait_until(lambda: "server_started" in log.read_text(), 10)
    finally:
        server.terminate()
        assert server.wait(10) == 0, log.read_text()


def test_a_supervisor_that_meets_a_fault_of_ours_ends_and_so_does_what_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    faulty = "import sys; from netwatch import cli, server; server.Supervisor._status = None; sys.exit(cli.main())"
    command = [sys.executable, "-c", faulty, "serve", "--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with log.open("wb") as errors:
        server = subprocess.Popen(command, stdout=errors, stderr=errors, env=os.environ | {"NOTIFY_SOCKET": "@nobody"})
    try:
        assert server.wait(20) == 1, log.read_text()
    finally:
        server.kill()
    assert '"event":"crashed"' in log.read_text()
    pids = {entry["pid"] for entry in map(json.loads, log.read_text().splitlines()) if "pid" in entry}
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
