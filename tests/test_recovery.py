"""Recovery: whole lines into a sealed file, damage into quarantine, again as often as it is interrupted."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netwatch.storage import recovery
from netwatch.storage.frame import Ending
from netwatch.storage.layout import SegmentId
from netwatch.storage.recovery import Leftover, Recovered
from netwatch.storage.segment import Segment
from tests.doubles import (
    RECEIVED_AT,
    Disk,
    blocks,
    calls_named,
    everything,
    install,
    made_line,
    made_lines,
    sealed_files,
    sealed_lines,
)

ID = SegmentId("0a1b2c3d", 1)
SEALED = ID.sealed_path(RECEIVED_AT)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "data"
    for directory in ("open", "reports", "quarantine"):
        (root / directory).mkdir(parents=True)
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


def leave(disk: Disk, *groups: bytes, segment_id: SegmentId = ID) -> Path:
    """A segment whose writer died after it committed the groups."""
    segment = Segment(disk.files, segment_id, compression_level=1)
    for group in groups:
        segment.append([group], 0.0)
    disk.kill()
    return disk.root / segment_id.open_path


def recover(disk: Disk) -> Recovered:
    (leftover,) = recovery.find_leftovers(disk.files)
    try:
        return recovery.recover(disk.files, leftover, 1)
    finally:
        disk.files.close(leftover.fd)


def ids(lines: bytes) -> set[bytes]:
    return {json.loads(line)["id"].encode() for line in lines.splitlines()}


def test_whole_lines_are_sealed(disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3), made_lines(3, 2))
    recovered = recover(disk)
    assert recovered == Recovered(SEALED, ids(made_lines(0, 5)), Ending.OPEN, 0, None)
    assert sealed_lines(disk.root) == made_lines(0, 5).splitlines()
    assert stat.S_IMODE((disk.root / SEALED).stat().st_mode) == 0o640
    assert stat.S_IMODE((disk.root / SEALED).parent.stat().st_mode) == 0o750
    subprocess.run(["zstd", "-tq", disk.root / SEALED], check=True)
    assert path.exists(), "the next writer may need its ids too"
    assert not list(disk.root.glob("open/*.recovering"))


def test_row_06_torn_tail_is_cut_and_counted(disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3), made_lines(3, 2, filling=400))
    good = next(end for _, end in blocks(path.read_bytes()))
    os.truncate(path, path.stat().st_size - 5)
    broken = path.stat().st_size - good
    assert recover(disk) == Recovered(SEALED, ids(made_lines(0, 3)), Ending.TORN, broken, None)
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()
    assert not list(disk.root.glob("quarantine/*"))


def test_row_06_pages_that_were_never_written_are_cut(disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3))
    os.truncate(path, path.stat().st_size + 100_000)
    assert recover(disk) == Recovered(SEALED, ids(made_lines(0, 3)), Ending.TORN, 100_000, None)


def test_row_07_damage_is_set_aside_as_it_was_found(disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3), made_lines(3, 2, filling=400), made_lines(5, 1))
    content = bytearray(path.read_bytes())
    start, end = list(blocks(bytes(content)))[1]
    content[(start + end) // 2] ^= 0x10
    path.write_bytes(content)
    recovered = recover(disk)
    assert (recovered.path, recovered.ending, recovered.quarantined) == (SEALED, Ending.DAMAGED, ID.quarantine_path)
    assert recovered.broken_bytes == len(content) - start
    lines = sealed_lines(disk.root)  # all before it, and what can be read of the block with the damage
    assert lines == (made_lines(0, 3) + made_line(3, filling=400)).splitlines()
    assert (disk.root / ID.quarantine_path).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"netwatch", b"x" * 5000, bytes(5000)])
def test_row_07_a_leftover_without_a_line_makes_no_sealed_file(content: bytes, disk: Disk) -> None:
    leave(disk).write_bytes(content)
    recovered = recover(disk)
    assert (recovered.path, recovered.ids) == (None, set())
    assert recovered.broken_bytes == len(content)
    assert sealed_files(disk.root) == []
    assert bool(recovered.quarantined) == (content[:1] == b"x" and len(content) > 18)


def test_row_06_cut_anywhere_an_exact_prefix_is_sealed(disk: Disk) -> None:
    groups = [made_lines(0, 2), made_lines(2, 3, filling=60_000), made_line(5)]
    path = leave(disk, *groups)
    content, lines = path.read_bytes(), b"".join(groups).splitlines()
    for size in range(0, len(content) + 1, 3):
        path.write_bytes(content[:size])
        recovered = recover(disk)
        found = sealed_lines(disk.root)
        assert found == lines[: len(found)]
        assert recovered.ids == ids(b"\n".join(found))
        assert recovered.quarantined is None
        if recovered.path:
            (disk.root / recovered.path).unlink()


def test_a_sealed_frame_that_was_never_published_is_sealed(disk: Disk) -> None:
    segment = Segment(disk.files, ID, compression_level=1)
    segment.append([made_lines(0, 3)], 0.0)
    disk.fail = calls_named(["rename"])
    with pytest.raises(OSError, match="Input/output"):
        segment.seal()
    disk.kill()
    assert recover(disk) == Recovered(SEALED, ids(made_lines(0, 3)), Ending.SEALED, 0, None)


def test_rule_3_a_sealed_file_is_never_written_again(disk: Disk) -> None:
    leave(disk, made_lines(0, 3))
    first = recover(disk)
    before = os.stat(disk.root / SEALED)
    assert recover(disk) == first
    after = os.stat(disk.root / SEALED)
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


def test_rule_3_a_leftover_shorter_than_what_was_sealed_does_no_harm(disk: Disk) -> None:
    """A power cut may take back what was appended to the leftover, and not what was sealed from it."""
    path = leave(disk, made_lines(0, 3), made_lines(3, 2, filling=400))
    recover(disk)
    before = everything(disk.root / "reports")
    os.truncate(path, next(end for _, end in blocks(path.read_bytes())))
    recovered = recover(disk)
    assert recovered.ids == ids(made_lines(0, 3) + made_lines(3, 2, filling=400)), "the ids are the sealed file's"
    assert recovered.quarantined is None
    assert everything(disk.root / "reports") == before


@pytest.mark.parametrize("other", [made_lines(0, 4), made_line(0) + made_line(7), made_lines(0, 1) + made_lines(5, 3)])
def test_rule_3_a_leftover_that_is_no_prefix_of_what_was_sealed_is_set_aside(other: bytes, disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3))
    recover(disk)
    before = everything(disk.root / "reports")
    path.unlink()
    path = leave(disk, other)
    content = path.read_bytes()
    recovered = recover(disk)
    assert recovered.quarantined == ID.quarantine_path
    assert recovered.ids == ids(made_lines(0, 3))
    assert (disk.root / ID.quarantine_path).read_bytes() == content
    assert everything(disk.root / "reports") == before


def test_rule_3_lines_are_compared_whatever_blocks_they_stand_in(disk: Disk) -> None:
    """The leftover has a block a commit, the sealed file one for each 128 KiB of lines."""
    groups = [made_lines(number, 1, filling=number * 1000) for number in range(30)]
    path = leave(disk, *groups)
    recover(disk)
    content, stored = path.read_bytes(), ids(b"".join(groups))
    for size in range(0, len(content) + 1, 97):
        path.write_bytes(content[:size])
        recovered = recover(disk)
        assert recovered.quarantined is None, size
        assert recovered.ids == (stored if recovered.path else set()), size
    for changed in (0, 1, 15, 29):
        path.unlink()
        leave(disk, *groups[:changed], made_lines(99, 1, filling=changed * 1000), *groups[changed + 1 :])
        recovered = recover(disk)
        (disk.root / ID.quarantine_path).unlink()
        assert (recovered.ids, recovered.path) == (stored, SEALED)
    path.unlink()
    leave(disk, *groups, made_line(99))
    assert recover(disk).quarantined == ID.quarantine_path
    assert sealed_lines(disk.root) == b"".join(groups).splitlines()


def test_row_07_a_sealed_file_that_was_damaged_keeps_its_leftover(disk: Disk) -> None:
    """Its lines are not readable in the sealed file any more: they must not go with the leftover."""
    path = leave(disk, made_lines(0, 3), made_lines(3, 2, filling=400))
    recover(disk)
    os.truncate(disk.root / SEALED, 30)
    recovered = recover(disk)
    assert (recovered.ids, recovered.quarantined) == (set(), ID.quarantine_path)
    assert (disk.root / ID.quarantine_path).samefile(path)


def test_its_name_is_the_first_lines_time(disk: Disk) -> None:
    times = ["2026-12-31T23:59:59.999999Z", "2027-01-01T00:00:00.000000Z"]
    leave(disk, *(made_line(number, received_at=time) for number, time in enumerate(times)))
    assert recover(disk).path == ID.sealed_path(times[0])


def test_a_segment_of_a_live_writer_is_no_leftover(disk: Disk) -> None:
    segment = Segment(disk.files, ID, compression_level=1)
    segment.append([made_lines(0, 3)], 0.0)
    assert recovery.find_leftovers(disk.files) == []
    disk.files.close(segment.fd)
    (leftover,) = recovery.find_leftovers(disk.files)
    assert leftover.id == ID
    assert recovery.find_leftovers(disk.files) == [], "one who recovers it holds it"


def test_what_is_not_ours_is_left_alone(disk: Disk) -> None:
    for name in ("lost+found", "notes.txt", "0a1b2c3d-000001.jsonl.zst.open.bak"):
        (disk.root / "open" / name).touch()
    before = everything(disk.root)
    segments = [disk.root / "open" / f"0a1b2c3d-00000{number}.jsonl.zst.open" for number in range(3)]
    segments[0].mkdir()
    os.mkfifo(segments[1])
    segments[2].symlink_to("/dev/zero")
    assert recovery.find_leftovers(disk.files) == []
    assert all(os.path.lexists(segment) for segment in segments)
    assert everything(disk.root) == before


def test_row_25_what_an_interrupted_recovery_wrote_is_removed(disk: Disk) -> None:
    """With and without its leftover; but not what another process is writing."""
    other = SegmentId("0a1b2c3d", 2)
    without = SegmentId("0a1b2c3d", 3)
    leave(disk, made_line(0))
    leave(disk, made_line(1), segment_id=other)
    for segment_id in (ID, other, without):
        (disk.root / segment_id.recovering_path).write_bytes(b"half of it")
    held = disk.files.open_locked(other.open_path)
    assert held is not None
    (leftover,) = recovery.find_leftovers(disk.files)
    assert leftover.id == ID
    assert [path.name for path in disk.root.glob("open/*.recovering")] == [Path(other.recovering_path).name]


@pytest.mark.parametrize("call", ["open", "write", "fdatasync", "rename", "fsync", "mkdir"])
def test_row_09_a_recovery_that_failed_can_be_done_again(call: str, disk: Disk) -> None:
    path = leave(disk, made_lines(0, 3))
    (leftover,) = recovery.find_leftovers(disk.files)
    disk.fail = calls_named([call])
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            recovery.recover(disk.files, leftover, 1)
        assert path.exists()
        assert not list(disk.root.glob("open/*.recovering"))
    disk.fail = lambda _number, _call: None
    assert recovery.recover(disk.files, leftover, 1).ids == ids(made_lines(0, 3))
    assert sealed_lines(disk.root) == made_lines(0, 3).splitlines()


def test_row_05_what_was_recovered_survives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    leave(disk, made_lines(0, 3))
    (leftover,) = recovery.find_leftovers(disk.files)
    recovery.recover(disk.files, leftover, 1)
    recovery.dispose(disk.files, leftover)
    disk.after_power_cut(tmp_path / "after", "lost", are_deletions_kept=True)
    assert sealed_lines(tmp_path / "after") == made_lines(0, 3).splitlines()


def test_row_05_a_name_that_another_published_unsynced_is_synced(disk: Disk, tmp_path: Path) -> None:
    leave(disk, made_lines(0, 3))
    (leftover,) = recovery.find_leftovers(disk.files)
    disk.fail = lambda _number, call: errno.EIO if call == "fsync" and (disk.root / SEALED).exists() else None
    with pytest.raises(OSError, match="Input/output"):
        recovery.recover(disk.files, leftover, 1)
    assert (disk.root / SEALED).exists()
    disk.kill()
    (leftover,) = recovery.find_leftovers(disk.files)
    recovery.recover(disk.files, leftover, 1)
    recovery.dispose(disk.files, leftover)
    disk.after_power_cut(tmp_path / "after", "lost", are_deletions_kept=True)
    assert sealed_lines(tmp_path / "after") == made_lines(0, 3).splitlines()


STREAMING = """
import os, sys
from pathlib import Path
from netwatch.storage import recovery
from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId
from netwatch.storage.segment import Segment
from tests.doubles import made_lines

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

for name in ("open", "reports", "quarantine"):
    Path(sys.argv[1], name).mkdir()
files = Files(os.open(sys.argv[1], os.O_RDONLY))
segment = Segment(files, SegmentId("0a1b2c3d", 1), 1)
group = made_lines(0, 100, filling=20_000)
for count in range(int(sys.argv[2]) * 1024 * 1024 // len(group) + 1):
    segment.append([group], 0.0)
files.close(segment.fd)
(leftover,) = recovery.find_leftovers(files)
before = peak_bytes()
recovered = recovery.recover(files, leftover, 1)
print(before, peak_bytes(), segment.lines_bytes, recovered.ending.value)
"""


def test_recovery_streams(tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]) -> None:
    """A segment of hundreds of megabytes costs a few of memory, and the ids."""
    size_mib = 1024 if full_sweeps else 300
    thinned(1024, size_mib, "MiB of lines in one leftover")
    root = Path(__file__).parents[1]
    output = subprocess.check_output([sys.executable, "-c", STREAMING, tmp_path, str(size_mib)], cwd=root, text=True)
    before, after, lines_bytes, ending = output.split()
    assert int(lines_bytes) > size_mib * 1024 * 1024
    assert ending == "open"
    assert int(after) - int(before) < 8 * 1024 * 1024


def test_disposing_removes_the_leftover_and_its_lock(disk: Disk) -> None:
    path = leave(disk, made_line(0))
    (leftover,) = recovery.find_leftovers(disk.files)
    recovery.recover(disk.files, leftover, 1)
    recovery.dispose(disk.files, leftover)
    assert not path.exists()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(leftover.fd)
    assert isinstance(leftover, Leftover)
