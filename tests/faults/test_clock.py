"""FAULTS.md row 15: the wall clock of a running server jumps and stands still.

The clock is injected: what Python loads first in each of the server's processes puts another one in its place. The
monotonic clock runs on, as the kernel's does. (libfaketime cannot be used: with it, CPython's sleep fails with EINVAL.)
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import GIVE_UP_S, Server, report, wait_until

SEAL_AFTER_S = 3.0
STOPPED_NS = 1_795_341_600_123_456_789
INJECTED = """
import time

_real_ns = time.time_ns


def _time_ns():
    with open({path!r}) as file:
        how, _, number = file.read().partition(" ")
    return int(number) if how == "at" else _real_ns() + int(number) * 10**9


time.time_ns = _time_ns
time.time = lambda: _time_ns() / 1e9
"""

SetClock = Callable[[str], None]


@pytest.fixture
def clock(tmp_path: Path) -> SetClock:
    """`clock("by -3600")` has the servers' clocks run an hour behind; `clock("at 0")` stops them there (ns)."""
    path = tmp_path / "clock"
    (tmp_path / "sitecustomize.py").write_text(INJECTED.format(path=str(path)))

    def set_clock(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)

    set_clock("by 0")
    return set_clock


def start(make_server: Serve, tmp_path: Path, *flags: str) -> Server:
    server = make_server("--workers", "1", *flags)
    server.spawn(environ={"PYTHONPATH": str(tmp_path)})
    server.wait_for_line()
    return server


def test_row_15_the_clock_jumps_an_hour_back_and_a_day_ahead(
    make_server: Serve, clock: SetClock, tmp_path: Path
) -> None:
    """Each segment is sealed ``seal_after_s`` after its first line, whatever the wall clock says; no name collides."""
    server = start(make_server, tmp_path, "--seal-after-s", str(SEAL_AFTER_S))
    took_s = []
    for number, jump in enumerate(["by -3600", "by 86400", "by -3600"]):
        sent_s = time.monotonic()
        assert server.post(report(f"{number} before")).status == 200
        clock(jump)
        assert server.post(report(f"{number} after")).status == 200
        assert wait_until(lambda: len(server.sealed_files()) > number, GIVE_UP_S)  # noqa: B023 - called at once
        took_s.append(time.monotonic() - sent_s)
    assert min(took_s) >= SEAL_AFTER_S, "sealed early"
    assert max(took_s) < SEAL_AFTER_S + 2, "sealed late"
    server.stop()
    lines = {line["report"]["clientId"]: line for line in server.stored()}
    assert sorted(lines) == sorted(f"{number} {when}" for number in range(3) for when in ("before", "after"))
    hours = {name: seconds_from_now(line["receivedAt"]) / 3600 for name, line in lines.items()}
    expected = {"0 before": 0, "0 after": -1, "1 before": -1, "1 after": 24, "2 before": 24, "2 after": -1}
    assert {name: round(hour) for name, hour in hours.items()} == expected, "the clock did jump"
    for path in server.sealed_files():
        assert path.parent.name.removeprefix("date=") == path.name[8:18]


def test_row_15_many_seals_in_one_millisecond(make_server: Serve, clock: SetClock, tmp_path: Path) -> None:
    """With the clock standing still, also over a restart of the writer, no name is used twice, and no id."""
    server = start(make_server, tmp_path, "--seal-after-s", "600")
    clock(f"at {STOPPED_NS}")
    for number in range(30):
        if number == 15:
            os.kill(server.find_one("writer").pid, signal.SIGKILL)
        assert server.post(report(f"{number}")).status == 200
        server.send(signal.SIGUSR1)
        assert wait_until(lambda: len(server.sealed_files()) > number, GIVE_UP_S)  # noqa: B023 - called at once
    server.stop()
    lines = server.stored()
    assert len({line["id"] for line in lines}) == len(lines) == 30
    assert len({line["receivedAt"] for line in lines}) == 1
    times = {re.sub(r"-[0-9a-f]{8}-\d{6}\.jsonl\.zst$", "", path.name) for path in server.sealed_files()}
    assert len(times) == 1


def seconds_from_now(received_at: str) -> float:
    """How much later than now the time of a line is, in seconds."""
    return datetime.fromisoformat(received_at).timestamp() - time.time()
