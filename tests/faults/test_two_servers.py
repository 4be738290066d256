"""FAULTS.md row 24: two servers on one data directory, under load, and killed there."""

from __future__ import annotations

import os
import signal

from tests.faults.clients import Clients
from tests.faults.processes import held_segments
from tests.system.conftest import Serve
from tests.system.server import wait_until


def test_row_24_two_servers_on_one_data_directory_under_load(serve: Serve, make_server: Serve) -> None:
    """Each seals its own segments; a writer that starts leaves alone what the other's holds, and takes what is left."""
    flags = ["--workers", "1", "--seal-bytes", "32KiB"]
    first = serve(*flags)
    second = make_server(*flags, data_dir=first.data_dir).start()
    with Clients(first, second, total=8) as clients:
        for number in range(4):
            clients.wait_acked(100)
            writer = first.find_one("writer")
            os.kill(writer.pid, signal.SIGKILL)
            clients.wait_acked(100)
            assert wait_until(lambda: first.find("writer") not in ([], [writer]), 5)  # noqa: B023 - called at once
            if number % 2:
                second.kill()
            else:
                second.send(signal.SIGTERM)
                assert second.wait() == 0
            second.start()
    second.kill()
    for _ in range(10):
        with clients:
            clients.wait_acked(4)
        if held := held_segments(first.find_one("writer")):
            break
    second.start()
    assert held
    assert held.isdisjoint(event["segment"] for event in second.logged("segment_recovered"))
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    second.stop()
    clients.audit(second)
    assert not clients.codes, "somebody was refused"
