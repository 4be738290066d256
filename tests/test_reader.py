"""Reading all stored lines while a server may be writing: each once, oldest first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch.reports import ID
from netwatch.storage import layout
from netwatch.storage.files import Files
from netwatch.storage.reader import Reader, sealed_segments
from netwatch.storage.store import KEEP_LEFTOVER_S
from tests.doubles import Disk, install, made_line, made_lines, made_store


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "data"
    root.mkdir()
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


def stored(files: Files) -> bytes:
    with contextlib.closing(Reader(files, print)) as everything:
        return b"".join(line + b"\n" for line in everything.stored())


def sealed_paths(files: Files) -> list[str]:
    return [path for path, _ in sealed_segments(files)]


def test_an_empty_data_directory_has_no_lines(disk: Disk) -> None:
    made_store(disk.files).start(0.0)
    assert stored(disk.files) == b""
    assert sealed_paths(disk.files) == []


def test_sealed_files_come_first_and_by_time_and_then_what_grows(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    times = ["2026-11-23T00:00:00.000001Z", "2026-11-22T23:59:59.999999Z", "2026-11-22T10:00:00.000000Z"]
    lines = [made_line(number, received_at=time) for number, time in enumerate(times)]
    for line in lines:
        store.commit([line], 0.0)
        store.tend(0.0)
        store.seal("asked")
        store.tend(0.0)
    growing = made_line(9, received_at="2026-11-21T00:00:00.000000Z")
    store.commit([growing], 0.0)
    assert stored(disk.files) == b"".join([*reversed(lines), growing])
    assert len(sealed_paths(disk.files)) == 3


def test_a_leftover_beside_what_was_recovered_from_it_is_read_once(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_lines(0, 3)], 0.0)
    disk.kill()
    assert stored(disk.files) == made_lines(0, 3)
    store = made_store(disk.files)
    store.start(1.0)
    assert len(list(disk.root.glob("open/*"))) == 2  # the leftover, and what is opened ahead
    assert stored(disk.files) == made_lines(0, 3)
    store.tend(1.0 + KEEP_LEFTOVER_S)
    assert stored(disk.files) == made_lines(0, 3)


def test_what_was_recovered_is_read_in_its_place_while_its_leftover_stands(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_line(0, received_at="2026-11-22T10:00:00.000000Z")], 0.0)
    disk.kill()
    store = made_store(disk.files)
    store.start(1.0)
    store.commit([made_line(1, received_at="2026-11-22T11:00:00.000000Z")], 1.0)
    store.seal("asked")
    assert [line[ID][-1:] for line in stored(disk.files).splitlines()] == [b"0", b"1"]


def test_a_segment_that_is_sealed_meanwhile_is_read_once(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_lines(0, 2)], 0.0)
    store.tend(0.0)
    store.seal("asked")
    store.commit([made_lines(2, 2)], 0.0)
    everything = Reader(disk.files, print)
    lines = everything.stored()
    found = [next(lines)]  # by now it has opened and listed everything
    store.seal("asked")
    found += lines
    everything.close()
    assert found == made_lines(0, 4).splitlines()


def test_a_file_removed_meanwhile_is_passed_over(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    for number in range(2):
        store.commit([made_line(number)], 0.0)
        store.tend(0.0)
        store.seal("asked")
        store.tend(0.0)
    everything = Reader(disk.files, print)
    lines = everything.stored()
    assert next(lines) == made_line(0).strip()
    (disk.root / sealed_paths(disk.files)[1]).unlink()
    assert list(lines) == []
    everything.close()


def test_what_is_not_ours_is_passed_over(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_line(0)], 0.0)
    assert store.close(0.0)
    (disk.root / "reports" / "README").write_text("not a directory", encoding="utf-8")
    (disk.root / "reports" / "date=2026-11-22" / "notes.jsonl.zst").write_text("not ours", encoding="utf-8")
    (disk.root / "open" / "lost+found").mkdir()
    assert stored(disk.files) == made_line(0)


def test_it_writes_nothing_and_keeps_no_file_open(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_line(0)], 0.0)
    store.tend(0.0)
    store.seal("asked")
    store.commit([made_line(1)], 0.0)
    before = sorted(os.listdir("/proc/self/fd"))
    disk.calls.clear()
    assert stored(disk.files) == made_lines(0, 2)
    opened = Reader(disk.files, print)
    stopped = opened.stored()  # as by a broken pipe
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]  # a generator has it
    opened.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert {call.split()[0] for call in disk.calls} <= {"open", "close", "scandir", "stat"}


def test_a_torn_tail_is_not_printed(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_line(0)], 0.0)
    store.commit([made_line(1)], 0.0)
    disk.kill()
    (path,) = (path for path in disk.root.glob("open/*") if path.stat().st_size)
    assert layout.open_segment(path.name)
    os.truncate(path, path.stat().st_size - 1)
    assert stored(disk.files) == made_line(0)
