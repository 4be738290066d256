"""The open segment: what a commit promises, what a failed one leaves, and what sealing makes of it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch.storage.files import Files
from netwatch.storage.frame import Ending, FrameReader
from netwatch.storage.layout import SegmentId
from netwatch.storage.segment import Segment
from tests.doubles import RECEIVED_AT, Disk, calls_named, install, made_line, made_lines, once, sealed_lines

ID = SegmentId("0a1b2c3d", 1)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "disk"
    for directory in ("open", "reports"):
        (root / directory).mkdir(parents=True)
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


def open_segment(files: Files) -> Segment:
    return Segment(files, ID, compression_level=1)


def read(path: Path) -> tuple[bytes, Ending]:
    fd = os.open(path, os.O_RDONLY)
    reader = FrameReader(fd)
    lines = b"".join(line + b"\n" for line in reader.lines())
    os.close(fd)
    return lines, reader.ending


def test_a_commit_can_be_read_at_once(disk: Disk) -> None:
    segment = open_segment(disk.files)
    for count in range(1, 4):
        segment.append([made_line(count)], 0.0)
        assert read(disk.root / ID.open_path) == (made_lines(1, count), Ending.OPEN)
        stock = subprocess.run(["zstd", "-dc", disk.root / ID.open_path], capture_output=True, check=False)
        assert stock.stdout == made_lines(1, count)  # and it complains about the end, which is not there yet


def test_a_commit_is_one_write_and_one_sync(disk: Disk) -> None:
    segment = open_segment(disk.files)
    disk.calls.clear()
    segment.append([made_lines(0, 3), made_lines(3, 500, filling=1000)], 0.0)
    assert [call.split()[0] for call in disk.calls] == ["write", "fdatasync"]


@pytest.mark.parametrize("tail", ["lost", "half", "zeros"])
def test_row_05_a_commit_survives_a_power_cut(tail: str, disk: Disk, tmp_path: Path) -> None:
    segment = open_segment(disk.files)
    segment.append([made_lines(0, 3)], 0.0)
    segment.append([made_lines(3, 2)], 0.0)
    disk.after_power_cut(tmp_path / "after", tail, are_deletions_kept=True)
    assert read(tmp_path / "after" / ID.open_path) == (made_lines(0, 5), Ending.OPEN)


def test_row_05_a_sealed_segment_survives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    segment = open_segment(disk.files)
    segment.append([made_lines(0, 3)], 0.0)
    path = segment.seal()
    disk.after_power_cut(tmp_path / "after", "lost", are_deletions_kept=True)
    assert read(tmp_path / "after" / path) == (made_lines(0, 3), Ending.SEALED)


def test_a_sealed_segment_is_one_frame_with_its_final_name(disk: Disk) -> None:
    segment = open_segment(disk.files)
    groups = [[made_line(1)], [made_lines(2, 300, filling=1000), made_line(302)]]
    for group in groups:
        segment.append(group, 0.0)
    expected = b"".join(itertools.chain(*groups))
    path = disk.root / segment.seal()
    assert path.relative_to(disk.root).as_posix() == ID.sealed_path(RECEIVED_AT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sealed_lines(disk.root) == expected.splitlines()
    assert subprocess.check_output(["zstd", "-dcq", path]) == expected
    listed = subprocess.check_output(["zstd", "-lv", path], text=True)
    assert "Check: XXH64" in listed
    assert not list((disk.root / "open").iterdir())


def test_what_is_counted_is_what_is_stored(disk: Disk) -> None:
    segment = open_segment(disk.files)
    assert (segment.lines_bytes, segment.stored_bytes, segment.first_at_s) == (0, 0, float("inf"))
    segment.append([made_lines(0, 3)], 5.0)
    segment.append([bytearray(made_lines(3, 2))], 7.0)
    assert segment.first_at_s == 5.0
    assert segment.lines_bytes == len(made_lines(0, 5))
    assert segment.stored_bytes == (disk.root / ID.open_path).stat().st_size
    path = segment.seal()
    assert segment.stored_bytes == (disk.root / path).stat().st_size


@pytest.mark.parametrize("call", ["write", "half a write", "fdatasync"])
def test_row_08_row_10_a_failed_commit_is_cut_back(call: str, disk: Disk) -> None:
    segment = open_segment(disk.files)
    segment.append([made_lines(0, 3)], 0.0)
    before = (disk.root / ID.open_path).read_bytes()
    disk.fail = once(len(disk.calls) + (2 if call == "fdatasync" else 1), errno.EIO)
    disk.is_write_short = call == "half a write"
    with pytest.raises(OSError, match="No space" if call == "half a write" else "Input/output"):
        segment.append([made_lines(3, 2)], 1.0)
    assert (disk.root / ID.open_path).read_bytes() == before


def test_row_10_a_failed_sync_is_not_tried_again(disk: Disk) -> None:
    segment = open_segment(disk.files)
    disk.calls.clear()
    disk.fail = calls_named(["fdatasync"])
    with pytest.raises(OSError, match="Input/output"):
        segment.append([made_line(1)], 0.0)
    assert [call.split()[0] for call in disk.calls] == ["write", "fdatasync", "ftruncate"]


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename", "fsync"])
def test_row_09_a_failed_seal_leaves_every_line(call: str, disk: Disk) -> None:
    segment = open_segment(disk.files)
    segment.append([made_lines(0, 3)], 0.0)
    disk.fail = calls_named([call])
    with pytest.raises(OSError, match="Input/output"):
        segment.seal()
    reader = FrameReader(segment.fd)
    assert list(reader.lines()) == made_lines(0, 3).splitlines()
    assert reader.ending in (Ending.OPEN, Ending.SEALED)


def test_a_segment_without_a_line_leaves_no_file(disk: Disk) -> None:
    open_segment(disk.files).discard()
    assert not list((disk.root / "open").iterdir())
