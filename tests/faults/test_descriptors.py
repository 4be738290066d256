"""FAULTS.md row 11: no file descriptors are left, in the workers or in the writer."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time

from tests.faults.clients import Clients
from tests.faults.processes import descriptors_total, is_busy, queue_path
from tests.system.conftest import Serve
from tests.system.server import GIVE_UP_S, START_S, report, wait_until

LIMIT = 96
"""Enough for a process of the server to start."""


def test_row_11_idle_connections_take_every_descriptor_of_the_workers(make_server: Serve) -> None:
    """Commits and seals go on for those who are connected; others are turned away, until there is room again."""
    server = make_server("--workers", "1")
    server.spawn(before=["prlimit", f"--nofile={LIMIT}:{LIMIT}"])
    server.wait_for_line(START_S)
    before = server.processes()
    worker = server.find_one("worker")
    with Clients(server) as clients, contextlib.ExitStack() as idle:
        clients.wait_connected()
        for _ in range(2 * LIMIT):
            connection = server.connect()
            idle.enter_context(connection)
        assert wait_until(lambda: descriptors_total(worker) >= LIMIT - 2, GIVE_UP_S)
        for seals in range(1, 4):
            clients.wait_acked(50)
            server.send(signal.SIGUSR1)
            assert wait_until(lambda: len(server.sealed_files()) >= seals, GIVE_UP_S)  # noqa: B023 - called at once
    assert wait_until(lambda: server.post(report("afterwards")).status == 200, GIVE_UP_S)
    assert server.processes() == before, "a process was replaced"
    assert clients.statuses.keys() == {200}
    server.stop()
    assert "afterwards" in server.stored_clients()
    stored = [line for line in server.stored() if line["report"]["clientId"] != "afterwards"]
    assert clients.lost(stored) == []


def test_row_11_a_writer_without_descriptors_commits_and_seals_when_it_has_some_again(serve: Serve) -> None:
    """It has what it needs for the open segment and the next one; no worker's link is lost, and it does not spin."""
    server = serve("--workers", "1", "--seal-after-s", "600")
    writer = server.find_one("writer")
    assert server.post(report("before")).status == 200
    assert wait_until(lambda: len(server.open_files()) == 2, GIVE_UP_S)  # it has what it opens ahead
    time.sleep(0.2)  # and has closed the directory that it synced
    limits = resource.prlimit(writer.pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{writer.pid}/fd")}
    resource.prlimit(writer.pid, resource.RLIMIT_NOFILE, (min(set(range(len(taken) + 1)) - taken), limits[1]))
    acked = ["before"]

    def post(name: str) -> int:
        answer = server.post(report(name))
        if answer.status == 200:
            acked.append(name)
        else:
            assert answer.code == "disk_error"
        return answer.status

    assert {post(f"without {number}") for number in range(10)} == {200}
    server.send(signal.SIGUSR1)
    assert wait_until(lambda: server.logged("seal_failed"), GIVE_UP_S)
    assert {post(f"in the next segment {number}") for number in range(10)} == {200}
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    path = queue_path(writer)
    for one in waiting:  # workers that nobody can take meanwhile
        one.connect(path)
    assert not is_busy(writer, 1.0), "it turns in circles while no link can be taken"
    resource.prlimit(writer.pid, resource.RLIMIT_NOFILE, limits)
    for one in waiting:
        one.close()
    assert wait_until(server.sealed_files, GIVE_UP_S)
    assert wait_until(lambda: post(f"after {len(acked)}") == 200, GIVE_UP_S)
    assert server.find_one("writer") == writer
    server.stop()
    assert server.stored_clients() == sorted(acked)
