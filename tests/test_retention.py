"""What age and size do not keep goes, oldest first, and never the newest; in steps for which nobody waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from netwatch.cli import main
from netwatch.metrics import table
from netwatch.metrics.board import Meter
from netwatch.storage import shipped
from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId
from netwatch.storage.retention import Retention
from tests.doubles import Disk, everything, install, made_line, made_store, sealed_files

DAY_S = 86400.0
NOW_S = 1795384800.0  # 2026-11-22T22:00:00Z
FILE_BYTES = 100
HOURS = [f"{day}T{hour:02}" for day in (19, 20, 21, 22) for hour in (0, 6, 12, 18)]
"""Of all files, before anything goes."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a file each six hours from the 19th of November on, the newest of 18:00 on the 22nd."""
    data = tmp_path / "data"
    (data / "open").mkdir(parents=True)
    for number in range(16):
        received_at = f"2026-11-{19 + number // 4}T{number % 4 * 6:02}:00:00.000000Z"
        make(data, number + 1, received_at)
    return data


def make(data: Path, number: int, received_at: str) -> Path:
    path = data / SegmentId("0a1b2c3d", number).sealed_path(received_at)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(FILE_BYTES))
    return path


def left(data: Path) -> list[str]:
    """The day and hour of each file."""
    return [path.name[16:21] for path in sealed_files(data) if path.name.startswith("reports-")]


def swept(
    data: Path, max_days: float | None = None, max_bytes: int | None = None, *, only_shipped: bool = False
) -> Meter:
    """What a retention has counted that has swept once."""
    meter = Meter()
    root = os.open(data, os.O_RDONLY)
    try:
        retention = Retention(
            Files(root),
            max_days=max_days,
            max_bytes=max_bytes,
            only_shipped=only_shipped,
            meter=meter,
            wall=lambda: NOW_S,
        )
        sweep(retention, 1000.0)
    finally:
        os.close(root)
    return meter


def counted(meter: Meter) -> tuple[int, int, int]:
    """How many files went by their age and by their size, and their bytes."""
    pruned = [meter.cells[table.PRUNED.first + table.PRUNED.series[(reason,)]] for reason in ("age", "size")]
    return pruned[0], pruned[1], meter.cells[table.PRUNED_BYTES.first]


def sweep(retention: Retention, now_s: float) -> None:
    retention.due_at_s = min(retention.due_at_s, now_s)
    start_s = now_s
    while retention.due_at_s < start_s + 50:
        now_s = max(retention.due_at_s, now_s)
        retention.tend(now_s)


def test_without_a_setting_nothing_is_ever_due(data: Path) -> None:
    assert Retention(Files(-1), max_days=None, max_bytes=None).due_at_s == float("inf")


def test_what_is_older_goes_and_empty_days_with_it(data: Path) -> None:
    meter = swept(data, max_days=1)
    assert left(data) == ["22T00", "22T06", "22T12", "22T18"]
    assert [path.name for path in (data / "reports").iterdir()] == ["date=2026-11-22"]
    assert counted(meter) == (12, 0, 12 * FILE_BYTES)


def test_the_oldest_go_until_the_rest_is_small_enough(data: Path) -> None:
    assert counted(swept(data, max_bytes=5 * FILE_BYTES)) == (0, 11, 11 * FILE_BYTES)
    assert left(data) == ["21T18", "22T00", "22T06", "22T12", "22T18"]
    swept(data, max_bytes=5 * FILE_BYTES - 1)
    assert left(data) == ["22T00", "22T06", "22T12", "22T18"]
    assert not (data / "reports" / "date=2026-11-21").exists()


def test_both_together(data: Path) -> None:
    swept(data, max_days=2, max_bytes=6 * FILE_BYTES)
    assert len(left(data)) == 6
    swept(data, max_days=1, max_bytes=6 * FILE_BYTES)
    assert len(left(data)) == 4


@pytest.mark.parametrize(("max_days", "max_bytes"), [(0.001, None), (None, 0), (0.001, 0)])
def test_the_newest_never_goes(data: Path, max_days: float | None, max_bytes: int | None) -> None:
    swept(data, max_days, max_bytes)
    assert left(data) == ["22T18"]


def test_what_is_not_ours_stays_and_so_does_its_day(data: Path) -> None:
    other = data / "reports" / "date=2026-11-19" / "notes.txt"
    other.write_text("not ours")
    swept(data, max_days=1)
    assert other.exists()
    assert len(left(data)) == 4


def test_a_file_whose_segment_still_stands_in_open_stays(data: Path) -> None:
    """Recovery would write it again."""
    leftover = data / SegmentId("0a1b2c3d", 2).open_path
    leftover.touch()
    swept(data, max_days=1)
    assert left(data) == ["19T06", "22T00", "22T06", "22T12", "22T18"]


def mark(data: Path, *hours: str) -> None:
    """Say of the files of these days and hours that they are shipped."""
    root = os.open(data, os.O_RDONLY)
    for path in sealed_files(data):
        if path.name[16:21] in hours:
            with path.open("rb") as file:
                shipped.mark(Files(root), file.fileno(), "s3://telemetry", "0" * 64)
    os.close(root)


def unshipped(meter: Meter) -> int:
    return meter.cells[table.UNSHIPPED.first]


def test_what_is_not_shipped_stays_if_it_must_be_and_holds_up_nothing(data: Path) -> None:
    mark(data, "19T06", "20T12", "22T00")
    meter = swept(data, max_days=1, only_shipped=True)
    assert sorted(set(HOURS) - set(left(data))) == ["19T06", "20T12"]
    assert (counted(meter)[0], unshipped(meter)) == (2, 10)


def test_nor_does_it_go_by_size(data: Path) -> None:
    mark(data, "19T06", "20T12", "22T00")
    meter = swept(data, max_bytes=4 * FILE_BYTES, only_shipped=True)
    assert sorted(set(HOURS) - set(left(data))) == ["19T06", "20T12", "22T00"]
    assert (counted(meter)[1], unshipped(meter)) == (3, 10)  # the twelve oldest would have gone, with two of these


def test_once_shipped_it_goes_by_size_as_ever(data: Path) -> None:
    mark(data, *HOURS)
    meter = swept(data, max_bytes=4 * FILE_BYTES, only_shipped=True)
    assert left(data) == HOURS[-4:]
    assert unshipped(meter) == 0


def test_prune_says_what_stays(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark(data, "19T06")
    arguments = ["prune", "--data-dir", str(data), "--retention-days", "1", "--retention-only-shipped", "yes"]
    assert main(arguments) == 0
    assert "19T06" not in left(data)
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("files stay because they are not shipped")
    assert said[-1].startswith("1 files of")


def test_what_comes_later_goes_at_a_later_sweep(data: Path) -> None:
    root = os.open(data, os.O_RDONLY)
    wall_s = NOW_S
    retention = Retention(Files(root), max_days=None, max_bytes=4 * FILE_BYTES, wall=lambda: wall_s)
    sweep(retention, 1000.0)
    assert len(left(data)) == 4
    make(data, 17, "2026-11-22T20:00:00.000000Z")
    wall_s += 60
    sweep(retention, 1060.0)
    os.close(root)
    assert left(data) == ["22T06", "22T12", "22T18", "22T20"]


def test_row_15_a_clock_that_is_stepped_deletes_nothing_by_age_for_an_hour(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = os.open(data, os.O_RDONLY)
    wall_s = NOW_S
    retention = Retention(Files(root), max_days=30, max_bytes=None, wall=lambda: wall_s)
    sweep(retention, 1000.0)
    wall_s = NOW_S + 365 * DAY_S
    sweep(retention, 1060.0)
    assert len(left(data)) == 16
    assert "prune_waits" in capfd.readouterr().err
    wall_s = NOW_S + 120
    sweep(retention, 1120.0)
    assert len(left(data)) == 16
    wall_s += 40 * DAY_S
    sweep(retention, 1180.0)
    wall_s += 3700
    sweep(retention, 1180.0 + 3700)
    os.close(root)
    assert left(data) == ["22T18"]


def test_a_disk_that_refuses_is_told_and_tried_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = install(Disk(data), monkeypatch)
    retention = Retention(disk.files, max_days=1, max_bytes=None, wall=lambda: NOW_S)
    disk.fail = lambda _number, call: 30 if call == "unlink" else None
    sweep(retention, 1000.0)
    assert len(left(data)) == 16
    disk.fail = lambda _number, _call: None
    sweep(retention, 1060.0)
    assert len(left(data)) == 4
    disk.release()


def test_a_step_is_short_whatever_there_is_to_list(data: Path) -> None:
    for number in range(20_000):
        path = data / SegmentId("0a1b2c3d", 100 + number).sealed_path(
            f"2026-11-20T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000000Z"
        )
        path.touch()
    root = os.open(data, os.O_RDONLY)
    retention = Retention(Files(root), max_days=1, max_bytes=20 * FILE_BYTES, wall=lambda: NOW_S)
    took_s = []
    now_s = 1000.0
    while retention.due_at_s < 1000.0 + 1e6 and retention.due_at_s - now_s < 10:
        now_s = max(retention.due_at_s, now_s)
        start_s = time.thread_time()
        retention.tend(now_s)
        took_s.append(time.thread_time() - start_s)
    os.close(root)
    assert len(left(data)) == 4
    assert len(took_s) > 20
    assert sorted(took_s)[len(took_s) * 19 // 20] < 0.01  # a step is 2 ms, and what sorts a minute's files
    assert sum(took_s) / len(took_s) < 0.005


def test_the_writer_prunes_between_its_commits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    root = os.open(data, os.O_RDONLY)
    files = Files(root)
    meter = Meter()
    retention = Retention(files, max_days=None, max_bytes=0, meter=meter)
    store = made_store(files, retention=retention)
    store.start(0.0)
    for number in range(6):
        store.commit([made_line(number)], float(number))
        store.seal("asked")
        store.tend(float(number))
    assert store.due_in_s(10.0) <= 60.0
    now_s = 100.0
    while counted(meter)[1] < 5:
        now_s += 1
        store.tend(now_s)
        assert now_s < 200
    assert len(sealed_files(data)) == 1
    store.close(now_s)
    os.close(root)


def test_the_dry_run_prints_what_then_goes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(data)
    arguments = ["prune", "--data-dir", str(data), "--retention-bytes", "1MiB", "--retention-days", "1"]
    assert main([*arguments, "--dry-run"]) == 0
    dry = capsys.readouterr().out.splitlines()
    assert everything(data) == before
    assert main(arguments) == 0
    wet = capsys.readouterr().out.splitlines()
    assert dry[:-1] == wet[:-1]
    gone = [line.partition("  ")[0] for line in wet[:-1]]
    assert gone == sorted(gone) == sorted(before.keys() - everything(data).keys())
    assert dry[-1] == f"{len(gone)} files of {len(gone) * FILE_BYTES} bytes would go"
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == "0 files of 0 bytes would go\n"


def test_without_a_setting_it_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--data-dir", str(data)]) == 2
    assert "retention_days" in capsys.readouterr().err
