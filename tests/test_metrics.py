from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from netwatch.metrics import board as board_module
from netwatch.metrics import table, text
from netwatch.metrics.board import Board, Meter, Terms, WorkerMeter
from netwatch.metrics.table import METRICS
from netwatch.ship.metrics import SHIPPER

TOTAL = len(table.TERMS)


def forked(work: Callable[[], object], *, is_killed: bool = True) -> None:
    """Do the work in a child process, which ends by SIGKILL, or as it likes."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


def sums_up(terms: Sequence[int]) -> bool:
    return terms[0] == sum(terms[1:])


def shown(board: Board) -> dict[str, str]:
    """What the text form says, by name and labels."""
    lines = text.render(board.read()).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


# The table


def test_names_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"netwatch(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == table.COUNTER), metric.name
        assert metric.help.endswith("."), metric.name
        assert metric.advice.endswith("."), metric.name
        assert (metric.unit == 1) == ("_seconds" not in metric.name)


def test_no_two_metrics_share_a_cell() -> None:
    for part in (table.WORKER, table.WRITER, table.SUPERVISOR):
        taken = [
            metric.first + offset + number
            for metric in part.metrics
            for offset in metric.series.values()
            for number in range(metric.width)
        ]
        assert taken == list(range(part.cells_total))


# The board


def test_each_process_sees_what_the_others_count() -> None:
    board = Board()
    forked(lambda: board.writer.add(table.COMMITS, 3))
    board.supervisor.add(table.STARTS, labels=("writer",))
    assert shown(board)["netwatch_commits_total"] == "3"
    assert shown(board)['netwatch_child_starts_total{child="writer"}'] == "1"


def test_a_killed_worker_leaves_its_counters_and_what_it_had_in_flight_is_unknown() -> None:
    board = Board()

    def work() -> None:
        meter = board.claim()
        meter.terms.received(10)
        meter.terms.done(4, stored=3, rejected=1)
        meter.set(table.CONNECTIONS, 7)

    forked(work)
    for _ in range(2):
        (terms,) = board.read().terms.values()
        assert dict(zip([metric.name for metric in table.TERMS], terms, strict=True)) == {
            "netwatch_reports_received_total": 10,
            "netwatch_reports_stored_total": 3,
            "netwatch_reports_duplicate_total": 0,
            "netwatch_reports_rejected_total": 1,
            "netwatch_reports_shed_total": 0,
            "netwatch_reports_unknown_total": 6,
            "netwatch_reports_in_flight": 0,
        }
    assert shown(board)['netwatch_connections_open{worker="0"}'] == "0"
    assert shown(board)["netwatch_workers"] == "0"


def test_the_heir_takes_the_slot_over_and_counts_on() -> None:
    board = Board()
    for _ in range(3):
        forked(lambda: board.claim().terms.received(2))
    meter = board.claim()
    assert meter.number == 0
    meter.terms.done(0, stored=0)
    (terms,) = board.read().terms.values()
    assert (terms[0], terms[5], sums_up(terms)) == (6, 6, True)
    assert shown(board)["netwatch_worker_starts_total"] == "4"


def test_living_workers_have_slots_of_their_own_and_keep_what_is_in_flight() -> None:
    board = Board()
    ready, is_ready = os.pipe()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            board.claim().terms.received(5)
            os.write(is_ready, b"x")
            signal.pause()
        pids.append(pid)
    try:
        for _ in pids:
            assert os.read(ready, 1) == b"x"
        assert [terms[-1] for terms in board.read().terms.values()] == [5, 5, 5]
        dead = pids.pop()
        os.kill(dead, signal.SIGKILL)
        os.waitpid(dead, 0)
        assert sorted(terms[-1] for terms in board.read().terms.values()) == [0, 5, 5]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(ready)
        os.close(is_ready)


def test_without_a_free_slot_a_worker_counts_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "SLOTS", 0)
    meter = Board().claim()
    assert meter.number is None
    meter.terms.received(1)


def test_a_kill_between_any_two_stores_leaves_terms_that_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each store is made to fail in turn, in the halves as on their way; the next owner finds the sums whole."""

    class Killed(BaseException):
        pass

    class Cells:
        """The cells, of which each store is counted, and the one of a chosen number never happens."""

        def __init__(self, cells: memoryview) -> None:
            self.cells = cells
            self.left = 10**9

        def store(self, place: int, value: int) -> None:
            if not self.left:
                raise Killed
            self.left -= 1
            self.cells[place] = value

        def __getitem__(self, place: int) -> int:
            value: int = self.cells[place]
            return value

        __setitem__ = store

    class Packer:
        """struct's, one store at a time."""

        def pack_into(self, cells: Cells, offset: int, *values: int) -> None:
            for number, value in enumerate(values):
                cells.store(offset // 8 + number, value)

        def unpack_from(self, cells: Cells | memoryview, offset: int) -> tuple[int, ...]:
            raw = cells.cells if isinstance(cells, Cells) else cells
            return struct.Struct(f"{TOTAL}q").unpack_from(raw, offset)

    monkeypatch.setattr(board_module, "_TERMS", Packer())
    kills = 0
    for at in range(100):
        memory = memoryview(bytearray(8 * (1 + 2 * TOTAL))).cast("q")
        cells = Cells(memory)
        terms = Terms(cells)  # type: ignore[arg-type]  # it has what Terms asks of a memoryview
        terms.received(7)
        terms.done(3, stored=1, shed=2)
        cells.left = at
        try:
            terms.received(5)
            terms.done(4, duplicate=4)
        except Killed:
            kills += 1
        left = board_module._current(memory)
        assert sums_up(left), (at, left)
        heir = Terms(Cells(memory))  # type: ignore[arg-type]  # as above
        heir.settle()
        after = board_module._current(memory)
        assert sums_up(after)
        assert after[-1] == 0
    assert kills == 2 * (TOTAL + 1)


def test_terms_are_read_whole_while_they_change() -> None:
    board = Board()
    pid = os.fork()
    if not pid:
        terms = board.claim().terms
        while True:
            terms.received(3)
            terms.done(3, stored=1, duplicate=1, unknown=1)
    try:
        seen = set[int]()
        while len(seen) < 200:
            for terms_ in board.read().terms.values():
                assert sums_up(terms_)
                seen.add(terms_[0])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# The text


def test_a_histogram_counts_up_and_its_bounds_belong_to_their_bucket() -> None:
    board = Board()
    for value in (1, 4, 5, 100_000):
        board.writer.observe(table.COMMIT_LINES, value)
    found = shown(board)
    name = "netwatch_commit_lines"
    counts = {key: value for key, value in found.items() if key.startswith(f"{name}_bucket")}
    assert list(counts.values()) == ["1", "2", "3", "3", "3", "3", "3", "3", "4"]
    assert next(iter(counts)) == f'{name}_bucket{{le="1"}}'
    assert list(counts)[-1] == f'{name}_bucket{{le="+Inf"}}'
    assert (found[f"{name}_sum"], found[f"{name}_count"]) == ("100010", "4")


def test_durations_are_seconds() -> None:
    board = Board()
    board.writer.observe(table.SYNC_SECONDS, 2_500_000)
    board.writer.set(table.LAST_SYNC_SECONDS, 1)
    found = shown(board)
    assert found["netwatch_fdatasync_seconds_sum"] == "0.0025"
    assert found['netwatch_fdatasync_seconds_bucket{le="0.001"}'] == "0"
    assert found['netwatch_fdatasync_seconds_bucket{le="0.0025"}'] == "1"
    assert found["netwatch_last_fdatasync_seconds"] == "0.000000001"


def test_what_is_not_shown_by_worker_is_their_sum() -> None:
    board = Board()
    meter = board.claim()
    meter.add(table.BODY_BYTES, 5)
    board._memory[1] = 1
    board._slot(1).add(table.BODY_BYTES, 5)
    meter.observe(table.REQUEST_SECONDS, 1, ("/livez",))
    found = shown(board)
    assert found["netwatch_body_bytes_total"] == "10"
    assert found['netwatch_request_duration_seconds_count{route="/livez"}'] == "1"
    assert found['netwatch_in_flight_bytes{worker="0"}'] == "0"
    assert found['netwatch_in_flight_bytes{worker="1"}'] == "0"


def test_every_metric_has_help_and_type_before_any_worker_lives() -> None:
    lines = text.render(Board().read()).decode().splitlines()
    for metric in METRICS:
        place = lines.index(f"# TYPE {metric.name} {metric.kind}")
        assert lines[place - 1].startswith(f"# HELP {metric.name} ")


def test_promtool_finds_nothing_to_say() -> None:
    board = Board()
    meter = board.claim()
    for metric in table.WORKER.metrics:
        for labels in metric.series:
            (meter.observe if metric.kind == table.HISTOGRAM else meter.add)(metric, 1, labels)
    check = subprocess.run(["promtool", "check", "metrics"], input=text.render(board.read()), capture_output=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_a_meter_without_a_board_counts_for_nobody() -> None:
    board = Board()
    Meter().add(table.COMMITS)
    WorkerMeter().terms.received(1)
    assert shown(board)["netwatch_commits_total"] == "0"
    assert board.read().terms == {}


# The alert rules

ALERTS = Path(table.__file__).parents[1] / "alerts.yml"


def test_every_alert_fires_on_what_it_is_for_and_is_silent_on_a_server_that_is_well(tmp_path: Path) -> None:
    cases = Path(__file__).with_name("alerts_test.yml").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text("utf-8"))
    for alert in alerts:
        assert cases.count(f"alertname: {alert}") == 2, alert
    path = tmp_path / "alerts_test.yml"
    path.write_text(cases.replace("RULES", str(ALERTS)), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_ask_only_for_metrics_that_there_are() -> None:
    names = {metric.name for metric in (*METRICS, *SHIPPER.metrics)}
    for name in re.findall(r"\bnetwatch_\w+", re.sub(r"action:.*", "", ALERTS.read_text("utf-8"))):
        assert name.removesuffix("_bucket") in names, name
