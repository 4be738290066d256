"""All segments of a writer: the rules that storing once rests on, the limits, and what a failing disk does to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netwatch.storage import layout
from netwatch.storage.store import KEEP_LEFTOVER_S, RESEND_S, Store, Unstored
from tests.doubles import (
    Client,
    Disk,
    calls_named,
    everything,
    install,
    made_line,
    made_lines,
    made_store,
    once,
    sealed_files,
    sealed_lines,
)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "data"
    root.mkdir()
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


def started(disk: Disk, now_s: float = 0.0, **changes: object) -> Store:
    store = made_store(disk.files, **changes)
    store.start(now_s)
    return store


def open_names(disk: Disk) -> list[str]:
    """What stands in open/, but for the empty segment that is opened ahead."""
    return sorted(path.name for path in (disk.root / "open").iterdir() if path.stat().st_size)


def no_room_for_recovery(disk: Disk) -> Callable[[int, str], int | None]:
    """What is written anew by recovery fails; the start's own proof, of number 0, does not."""
    return lambda _number, _call: errno.ENOSPC if "-000001.jsonl.zst.recovering" in disk.calls[-1] else None


# Starting and stopping


def test_no_reports_leave_no_file(disk: Disk) -> None:
    store = started(disk)
    for now_s in range(200):
        store.tend(float(now_s))
    assert store.close(200.0)
    assert everything(disk.root) == {}
    assert sorted(path.name for path in disk.root.iterdir()) == ["open", "quarantine", "reports"]


def test_a_drain_seals_everything(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    assert store.close(0.0)
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()
    assert not list(disk.root.glob("open/*"))


@pytest.mark.parametrize("call", ["mkdir", "write", "fdatasync", "rename", "unlink", "fsync"])
def test_row_18_a_directory_that_cannot_keep_the_promise_stops_the_start(call: str, disk: Disk) -> None:
    disk.fail = calls_named([call], errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        started(disk)


def test_the_next_segment_is_opened_ahead(disk: Disk) -> None:
    """So that a commit needs no descriptor and no name: only a write and a sync."""
    store = started(disk)
    for number in range(3):
        disk.calls.clear()
        store.commit([made_line(number)], 0.0)
        assert [call.split()[0] for call in disk.calls] == ["fstatvfs", "write", "fdatasync"]
        store.seal("asked")
        store.tend(0.0)


def test_row_11_no_descriptors_left_stop_no_commit(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_line(0)], 0.0)
    store.tend(0.0)
    disk.fail = calls_named(["open"], errno.EMFILE)
    store.commit([made_line(1)], 1.0)
    store.tend(1.0)
    disk.fail = lambda _number, _call: None
    store.tend(1.0)
    assert store.close(2.0)
    assert sealed_lines(disk.root) == made_lines(0, 2).splitlines()


# When a segment is sealed


def test_a_segment_is_sealed_by_its_size_in_lines(disk: Disk) -> None:
    line = made_line(0)
    store = started(disk, seal_bytes=2 * len(line) + 1)
    for number in range(3):
        store.commit([made_line(number)], 0.0)
        assert sealed_files(disk.root) == []
        if number < 2:
            store.tend(0.0)
    store.tend(0.0)
    assert len(sealed_files(disk.root)) == 1


def test_rule_1_a_commit_never_seals(disk: Disk) -> None:
    """Sealed before the ack, a crash in between would leave nothing that the resend is recognised by."""
    store = started(disk, seal_bytes=1, seal_after_s=0.05)
    for now_s in (0.0, 100.0, 200.0):
        store.commit([made_line(int(now_s))], now_s)
        assert sealed_files(disk.root) == []
        assert len(open_names(disk)) == 1
    store.tend(200.0)
    assert len(sealed_files(disk.root)) == 1


def test_a_segment_is_sealed_60_s_after_its_first_line(disk: Disk) -> None:
    store = started(disk)
    assert store.due_in_s(5.0) == float("inf")
    store.commit([made_line(0)], 10.0)
    store.commit([made_line(1)], 69.0)
    store.tend(69.9)
    assert sealed_files(disk.root) == []
    assert store.due_in_s(69.5) == pytest.approx(0.5)
    store.tend(70.0)
    assert len(sealed_files(disk.root)) == 1
    store.commit([made_line(2)], 70.0)
    store.tend(129.9)
    assert len(sealed_files(disk.root)) == 1
    store.tend(130.0)
    assert len(sealed_files(disk.root)) == 2


def test_row_15_clock_jumps_and_many_seals_in_a_millisecond_collide_never(disk: Disk) -> None:
    """The wall clock stands still, jumps an hour back, a day ahead: only names and lines know it."""
    store = started(disk)
    times = ["2026-11-22T10:24:10.123456Z"] * 20 + ["2026-11-22T09:24:10.123456Z", "2026-11-23T10:24:10.123456Z"] * 3
    for number, time in enumerate(times):
        store.commit([made_line(number, received_at=time)], 1000.0)
        store.tend(1059.9)
        assert len(sealed_files(disk.root)) == number, "sealed early"
        store.tend(1060.0)
        assert len(sealed_files(disk.root)) == number + 1, "sealed late, or over another"
    assert len(sealed_lines(disk.root)) == len(times)
    for path in sealed_files(disk.root):
        assert path.parent.name[5:] == path.name[8:18]


# Rule 2


def test_rule_2_ids_of_a_leftover_are_remembered(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    store = started(disk, 1.0)
    assert store.is_recovered
    assert store.missing(made_lines(0, 3), 0.0) == b""
    assert store.missing(bytearray(made_lines(2, 3)), 0.0) == made_lines(3, 2)
    assert store.missing(made_lines(7, 2), 0.0) == made_lines(7, 2)


def test_rule_2_the_next_writer_needs_them_too(disk: Disk) -> None:
    """Recovered by one that dies at once, the segment's lines are still recognised by the one after it."""
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    for now_s in (1.0, 2.0, 1.0 + RESEND_S):
        disk.kill()
        store = started(disk, now_s)
        assert store.missing(made_lines(0, 4), 0.0) == made_line(3)
    assert store.close(20.0)
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()


def test_rule_2_a_leftover_goes_when_nothing_in_it_can_be_resent(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    store = started(disk, 100.0)
    store.tend(100.0 + KEEP_LEFTOVER_S - 0.1)
    assert len(open_names(disk)) == 1
    assert store.due_in_s(100.0) == pytest.approx(KEEP_LEFTOVER_S)
    assert KEEP_LEFTOVER_S > RESEND_S
    store.tend(100.0 + KEEP_LEFTOVER_S)
    assert open_names(disk) == []
    assert store.due_in_s(200.0) == float("inf")


def test_rule_2_a_leftover_goes_at_the_end_of_a_drain(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    store = started(disk, 1.0)
    assert store.close(1.1)
    assert not list(disk.root.glob("open/*"))
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()


def with_key(number: int) -> bytes:
    """A line that came with a key."""
    line = made_line(number).replace(b"-7000-", b"-8000-", 1)
    start = line[: line.rindex(b',"crc"')]
    return b'%b,"crc":"%08x"}\n' % (start, zlib.crc32(start))


def test_what_a_leftover_had_under_a_key_is_known_when_it_is_gone(disk: Disk) -> None:
    store = started(disk)
    plain = made_line(2)
    lines = with_key(0) + with_key(1) + plain
    store.commit([lines], 0.0)
    disk.kill()
    store = started(disk, 100.0)
    assert store.missing(lines, 0.0) == b""
    gone_s = 100.0 + KEEP_LEFTOVER_S
    store.tend(gone_s)
    assert open_names(disk) == []
    assert store.missing(lines, 0.0) == plain
    store.window.learn([], gone_s + 899.0)
    assert store.missing(lines, 0.0) == plain
    store.window.learn([], gone_s + 900.0)
    assert store.missing(lines, 0.0) == lines


# Rules 3, 5 and 7


def test_rule_3_a_leftover_of_what_is_sealed_already_adds_nothing(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    started(disk, 1.0)
    before = everything(disk.root / "reports")
    for now_s in (2.0, 3.0):
        disk.kill()
        store = started(disk, now_s)
        assert everything(disk.root / "reports") == before
    assert store.close(4.0)
    assert everything(disk.root / "reports") == before
    assert everything(disk.root / "quarantine") == {}


def test_rule_5_fresh_batches_go_on_while_a_leftover_cannot_be_recovered(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    disk.fail = no_room_for_recovery(disk)
    store = started(disk, 1.0)
    now_s = 1.0
    for number in range(3, 13):  # also from one segment to the next
        store.commit([made_line(number)], now_s)
        store.seal("asked")
        store.tend(now_s)
        assert not store.is_recovered, "a resend cannot be told from a fresh batch"
        now_s += store.due_in_s(now_s)
    assert len(sealed_files(disk.root)) == 10
    disk.fail = lambda _number, _call: None
    store.tend(now_s)
    assert store.is_recovered
    assert store.missing(made_lines(0, 3), 0.0) == b""
    assert store.close(now_s)
    assert sorted(sealed_lines(disk.root)) == made_lines(0, 13).splitlines()


def test_row_09_recovery_is_tried_again_with_backoff(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    disk.fail = no_room_for_recovery(disk)
    store = started(disk, 1.0)
    now_s, waits = 1.0, list[float]()
    for _ in range(12):
        waits.append(store.due_in_s(now_s))
        now_s += waits[-1]
        store.tend(now_s)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 6])
    assert not store.close(now_s), "something had to be left"
    assert len(open_names(disk)) == 1
    disk.kill()
    assert started(disk, 100.0).close(100.0)
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("can_be_cut", [True, False])
def test_rule_7_a_segment_given_up_is_recovered_before_the_next_group(call: str, can_be_cut: bool, disk: Disk) -> None:
    store = started(disk)
    client = Client()
    client.post(store, client.lines(2))
    store.tend(0.0)
    disk.fail = calls_named([call] if can_be_cut else [call, "ftruncate"])
    assert not client.post(store, client.lines(3))
    disk.fail = lambda _number, _call: None
    store.tend(1.0)  # what the writer does before it takes the next group
    assert store.is_recovered
    assert len(sealed_files(disk.root)) == 1
    assert client.acked == sealed_lines(disk.root)[:2]
    assert client.post(store, client.lines(2), 2.0)
    store.tend(2.0)
    assert store.close(3.0)
    client.demand_stored(sealed_lines(disk.root))
    assert not list(disk.root.glob("open/*"))


@pytest.mark.parametrize("can_be_cut", [True, False])
def test_what_cannot_be_cut_off_may_be_stored(can_be_cut: bool, disk: Disk) -> None:
    store = started(disk)
    disk.fail = calls_named(["fdatasync"] if can_be_cut else ["fdatasync", "ftruncate"])
    with pytest.raises(Unstored) as caught:
        store.commit([made_lines(0, 2)], 0.0)
    assert caught.value.code == ("disk_error" if can_be_cut else "unknown")
    disk.fail = lambda _number, _call: None
    store.tend(1.0)
    assert sealed_lines(disk.root) == ([] if can_be_cut else made_lines(0, 2).splitlines())


def test_rule_7_the_ids_of_a_segment_given_up_are_known(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 2)], 0.0)
    disk.fail = calls_named(["fdatasync", "ftruncate"])
    with pytest.raises(Unstored):
        store.commit([made_lines(2, 2)], 0.0)
    disk.fail = lambda _number, _call: None
    store.tend(0.0)
    assert store.missing(made_lines(0, 2), 0.0) == b""


# A failing disk


def test_row_10_one_failed_sync_refuses_one_group(disk: Disk, tmp_path: Path) -> None:
    store = started(disk)
    client = Client()
    client.post(store, client.lines(2))
    store.tend(0.0)
    disk.fail = once(len(disk.calls) + 3)
    assert not client.post(store, client.lines(2))
    failed = disk.calls[-2].split()[1]
    assert disk.calls[-2:] == [f"fdatasync {failed}", f"ftruncate {failed}"]
    store.tend(0.0)
    assert client.post(store, client.lines(2))
    assert disk.calls[-1] != f"fdatasync {failed}", "on that file never again"
    disk.after_power_cut(tmp_path / "after", "lost", are_deletions_kept=True)
    disk.kill()
    after = Disk(tmp_path / "after")
    made_store(after.files).start(1.0)
    client.demand_stored(sealed_lines(after.root))
    after.release()


@pytest.mark.parametrize(
    ("error", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EFBIG, "disk_full"), (errno.EIO, "disk_error")],
)
def test_row_08_a_refusal_says_why(error: int, code: str, disk: Disk) -> None:
    store = started(disk)
    disk.fail = calls_named(["write"], error)
    with pytest.raises(Unstored) as caught:
        store.commit([made_line(0)], 0.0)
    assert caught.value.code == code  # tests/test_queue.py: what its clients are told, and when to come again


def test_row_08_below_the_reserve_it_refuses_early_and_goes_on_by_itself(disk: Disk) -> None:
    free_bytes = disk.files.free_bytes()
    store = started(disk, min_free_bytes=free_bytes * 2)
    with pytest.raises(Unstored) as caught:
        store.commit([made_line(0)], 0.0)
    assert caught.value.code == "disk_full"
    assert open_names(disk) == []
    assert store.close(0.0)
    store = started(disk, min_free_bytes=free_bytes // 2)
    store.commit([made_line(0)], 0.0)


def test_a_disk_that_does_not_say_how_full_it_is_refuses(disk: Disk) -> None:
    store = started(disk)
    disk.fail = calls_named(["fstatvfs"])
    with pytest.raises(Unstored) as caught:
        store.commit([made_line(0)], 0.0)
    assert caught.value.code == "disk_error"
    disk.fail = lambda _number, _call: None
    store.commit([made_line(0)], 0.0)


def test_without_a_next_segment_everything_is_refused_until_there_is_one(disk: Disk) -> None:
    store = started(disk)
    disk.fail = calls_named(["write", "open"], errno.ENOSPC)
    with pytest.raises(Unstored):
        store.commit([made_line(0)], 0.0)
    now_s = 0.0
    for _ in range(5):
        store.tend(now_s)
        with pytest.raises(Unstored) as caught:
            store.commit([made_line(0)], now_s)
        assert caught.value.code == "disk_error"
        now_s += store.due_in_s(now_s)
    disk.fail = lambda _number, _call: None
    store.tend(now_s)
    store.commit([made_line(1)], now_s)
    assert store.close(now_s)
    assert sealed_lines(disk.root) == [made_line(1).strip()]


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename", "fsync"])
def test_row_09_a_failed_seal_loses_nothing_and_is_finished_by_recovery(call: str, disk: Disk) -> None:
    store = started(disk)
    client = Client()
    client.post(store, client.lines(3))
    store.tend(0.0)
    disk.fail = calls_named([call])
    store.seal("asked")
    store.tend(0.0)
    assert client.acked == sealed_lines(disk.root) or len(open_names(disk)) >= 1
    disk.fail = lambda _number, _call: None
    store.tend(10.0)
    assert sealed_lines(disk.root) == client.acked
    assert store.is_recovered
    assert store.close(30.0)
    assert not list(disk.root.glob("open/*"))
    assert sealed_lines(disk.root) == client.acked


def test_what_cannot_be_removed_at_the_drain_is_said(disk: Disk) -> None:
    store = started(disk)
    disk.fail = calls_named(["unlink"])
    assert not store.close(0.0)
    disk.kill()
    assert started(disk).close(1.0)
    assert everything(disk.root) == {}


FULL_DISK = """
import json, os, resource, sys
from netwatch.storage.files import Files
from netwatch.storage.store import Unstored
from tests.doubles import made_line, made_store

store = made_store(Files(os.open(sys.argv[1], os.O_RDONLY)), seal_bytes=10**6)
store.start(0.0)
outcomes = []
for number in range(40):
    if number == 20:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    elif number == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
    try:
        store.commit([made_line(number, filling=number * 8)], 0.0)
        outcomes.append("stored")
    except Unstored as error:
        outcomes.append(error.code)
    store.tend(float(number))
print(json.dumps([outcomes, store.close(100.0)]))
"""


def test_row_08_the_kernel_refuses_and_takes_half(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the write that reaches it is short, and the next one fails."""
    root = Path(__file__).parents[1]
    outcomes, is_closed = json.loads(subprocess.check_output([sys.executable, "-c", FULL_DISK, tmp_path], cwd=root))
    assert is_closed
    assert outcomes[:5] == ["stored"] * 5
    assert "disk_full" in outcomes[5:20]
    assert outcomes[21:] == ["stored"] * 19
    assert set(outcomes) == {"stored", "disk_full"}
    stored = set(sealed_lines(tmp_path))
    lines = [made_line(number, filling=number * 8).strip() for number in range(40)]
    assert {line for line, outcome in zip(lines, outcomes, strict=True) if outcome == "stored"} == stored
    assert not list(tmp_path.glob("open/*"))


# Two servers


def test_row_24_two_stores_on_one_directory(disk: Disk) -> None:
    one, two = started(disk), started(disk)
    for number in range(0, 8, 2):
        one.commit([made_line(number)], 0.0)
        two.commit([made_line(number + 1)], 0.0)
        one.tend(0.0)
        two.tend(0.0)
        one.seal("asked")
    sealed = sealed_files(disk.root)
    three = started(disk)  # takes nothing from the living, but knows what stands there
    assert sealed_files(disk.root) == sealed
    assert three.missing(made_lines(0, 8), 0.0) == b"".join(made_line(number) for number in range(0, 8, 2))
    for store in (three, one, two):
        assert store.close(1.0)
    assert sorted(sealed_lines(disk.root)) == made_lines(0, 8).splitlines()
    assert not list(disk.root.glob("open/*"))


def test_row_24_each_leftover_is_recovered_by_one(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    one, two = started(disk), started(disk)
    assert one.missing(made_lines(0, 3), 0.0) == b""
    assert two.missing(made_lines(0, 3), 0.0) == b""  # the workers of the dead may be its own
    two.tend(KEEP_LEFTOVER_S)
    assert two.missing(made_lines(0, 3), 0.0) == made_lines(0, 3)  # nothing from then can be resent any more
    assert two.close(1.0)
    assert len(sealed_files(disk.root)) == 1
    assert one.close(1.0)
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()


def test_files_are_recognised_as_those_of_one_writer(disk: Disk) -> None:
    store = started(disk)
    for number in range(3):
        store.commit([made_line(number)], 0.0)
        store.tend(0.0)
        store.seal("asked")
        store.tend(0.0)
    segments = [layout.sealed_segment(path.name) for path in sealed_files(disk.root)]
    assert len({segment.instance for segment in segments if segment}) == 1
    assert len({segment.number for segment in segments if segment}) == 3
    assert os.fspath(sealed_files(disk.root)[0]).endswith("-000001.jsonl.zst")


def test_a_deleted_segment_is_noticed_and_its_lines_are_saved(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    for path in disk.root.glob("open/*"):
        path.unlink()
    with pytest.raises(Unstored) as refused:
        store.commit([made_lines(3, 3)], 0.0)
    assert refused.value.code == "disk_error"
    store.tend(0.0)
    store.commit([made_lines(6, 3)], 0.0)
    assert store.close(1.0)
    assert sorted(sealed_lines(disk.root)) == (made_lines(0, 3) + made_lines(6, 3)).splitlines()


def test_a_deleted_data_directory_is_refused_for_good(disk: Disk) -> None:
    store = started(disk)
    store.commit([made_lines(0, 3)], 0.0)
    shutil.rmtree(disk.root)
    for now_s in (0.0, 10.0, 20.0):
        with pytest.raises(Unstored):
            store.commit([made_lines(3, 3)], now_s)
        store.tend(now_s)
    assert not store.close(30.0)
    disk.root.mkdir()
