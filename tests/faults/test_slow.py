"""FAULTS.md rows 12 and 14: a disk that takes 2 s for each sync, and a worker that is frozen until it is replaced."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.clients import Clients
from tests.faults.strace import injected
from tests.system.conftest import Serve
from tests.system.server import GIVE_UP_S, MIB, Server, wait_until

SYNC_S = 2
IN_FLIGHT_BYTES = 40 * MIB


def rss_bytes(server: Server) -> int:
    return sum(process.rss_bytes for process in server.processes())


def test_row_12_a_disk_that_takes_2_s_a_sync(serve: Serve) -> None:
    """Memory stays bounded, 503 comes at the deadline, nobody is killed for it; afterwards all is as before."""
    flags = ["--workers", "2", "--ack-timeout-s", "1", "--in-flight-bytes", str(IN_FLIGHT_BYTES)]
    server = serve(*flags, "--seal-bytes", "1MiB")
    assert wait_until(lambda: len(server.find("worker")) == 2, GIVE_UP_S)
    before = server.processes()
    with Clients(server, total=16, padding_bytes=200_000, pause_s=0.02) as clients:
        clients.wait_acked(100)
        before_bytes = peak_bytes = rss_bytes(server)
        with injected(server.find_one("writer").pid, f"fdatasync:delay_enter={SYNC_S * 1_000_000}"):
            clients.took_s.clear()
            until_s = time.monotonic() + 3 * SYNC_S
            while time.monotonic() < until_s:
                peak_bytes = max(peak_bytes, rss_bytes(server))
                assert server.ask("GET", "/livez").status == 200
                time.sleep(0.1)
            slow = {status: sorted(took_s) for status, took_s in clients.took_s.items()}
        acked = len(clients.acked)
        assert wait_until(lambda: len(clients.acked) > acked + 100, GIVE_UP_S), clients.statuses
        assert wait_until(lambda: server.ask("GET", "/readyz").status == 200, GIVE_UP_S)
    assert set(clients.statuses) <= {200, 503}, clients.statuses
    assert set(clients.codes) <= {"ack_timeout", "overloaded"}
    assert clients.codes["ack_timeout"] > 0
    assert 0.9 < slow[503][len(slow[503]) // 2] < SYNC_S, slow[503]
    assert peak_bytes - before_bytes <= 3 * IN_FLIGHT_BYTES
    assert server.processes() == before, "a process was replaced"
    assert not server.logged("child_died")
    server.stop()
    clients.audit(server)


@pytest.mark.soak
def test_row_14_a_worker_frozen_under_load_is_replaced_and_only_its_own_requests_suffer(serve: Serve) -> None:
    """What it had accepted waits until Gunicorn kills it; nobody else waits for more than the usual time."""
    server = serve("--workers", "2")
    assert wait_until(lambda: len(server.find("worker")) == 2, GIVE_UP_S)
    frozen, _ = server.find("worker")
    with Clients(server, total=16) as clients:
        clients.wait_acked(100)
        os.kill(frozen.pid, signal.SIGSTOP)
        assert wait_until(lambda: not frozen.is_alive, 60)
        assert wait_until(lambda: len(server.find("worker")) == 2, GIVE_UP_S)
        clients.wait_acked(100)
    assert set(clients.statuses) <= {200, "TimeoutError", "ConnectionResetError", "RemoteDisconnected"}
    failed = clients.statuses.total() - clients.statuses[200]
    assert failed <= 16, "each of its connections fails once"
    assert max(clients.took_s[200]) < 2
    server.stop()
    clients.audit(server)
