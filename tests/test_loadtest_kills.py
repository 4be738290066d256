"""The load test's own server and its storm: what a stop, an end or a kill leaves is judged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from netwatch.loadtest.chaos import Process, Server, Storm, descendants, wait_until
from tests.stand_in import stand_in


@pytest.mark.parametrize(
    ("mode", "failure"),
    [("good", ""), ("exit", "stop: exit code 3"), ("leftover", "stop: 1 left in open/"), ("orphan", "orphan: ")],
)
def test_stop_of_the_server_is_judged(tmp_path: Path, mode: str, failure: str) -> None:
    failures: list[str] = []
    server = Server(stand_in(mode), tmp_path, failures)
    server.start()
    assert server.wait_ready()
    below = descendants(server.pid)
    assert len(below) == 1
    server.stop()
    assert [one.startswith(failure) for one in failures] == [True] * bool(failure)
    assert wait_until(lambda: not below[0].alive(), 5)


def test_server_that_ends_by_itself_is_a_failure(tmp_path: Path) -> None:
    failures: list[str] = []
    server = Server([sys.executable, "-c", "raise SystemExit(2)"], tmp_path, failures)
    server.start()
    assert not server.wait_ready()
    assert failures == ["server: ended by itself with exit code 2"]


def test_storm_of_kills_restarts_the_server_and_reports_what_is_left(tmp_path: Path) -> None:
    failures: list[str] = []
    server = Server(stand_in("good"), tmp_path, failures)
    server.start()
    for kind in ("all", "stop"):
        storm = Storm(server, kind, 0.01, seed=1)
        first = server.pid
        storm.end()
        storm.run()
        assert storm.kills == {}
        assert server.wait_ready()
        storm.strike(kind)
        assert storm.kills == {kind: 1}
        assert server.pid != first
        assert server.wait_ready()
    assert failures == []
    left = server.kill_supervisor()
    assert [process.alive() for process in left] == [True]
    server.expect_end(left, 0.1)
    assert [one.startswith("orphan: ") for one in failures] == [True]


def test_a_pid_used_again_is_another_process() -> None:
    assert not Process(os.getpid(), "1", "").alive()


def test_reload_is_hup_to_the_supervisor_and_nothing_else(tmp_path: Path) -> None:
    failures: list[str] = []
    server = Server(stand_in("good"), tmp_path, failures)
    server.start()
    assert server.wait_ready()
    first, below = server.pid, descendants(server.pid)
    storm = Storm(server, "reload", 60, seed=1)
    seen = tmp_path / "reloads"
    storm.strike("reload")
    assert wait_until(lambda: seen.exists() and seen.read_text() == "HUP ", 5)
    storm.strike("reload")
    assert wait_until(lambda: seen.read_text() == "HUP HUP ", 5)
    assert storm.kills == {"reload": 2}
    assert (server.pid, descendants(first)) == (first, below)
    server.stop()
    assert failures == []
