"""The file operations: modes under any umask, locks, what is durable on return, what is left after a failure."""

from __future__ import annotations

import errno
import functools
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch.storage.files import Files, file_system, open_data_directory
from tests.doubles import Disk, calls_named, install, once


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "open").mkdir()
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Files(root)
    os.close(root)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "disk"
    (root / "open").mkdir(parents=True)
    (root / "quarantine").mkdir()
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_after_power_cut(disk: Disk) -> set[str]:
    target = disk.root.with_name("after")
    disk.after_power_cut(target, "lost", are_deletions_kept=True)
    return {str(path.relative_to(target)) for path in target.rglob("*")}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_are_0640_and_0750_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    if umask == 0o777 and os.geteuid():
        pytest.skip("only root enters a directory that it took from itself")
    before = os.umask(umask)
    try:
        root = open_data_directory(tmp_path / "some" / "where" / "data")
        files = Files(root)
        files.make_directory("open")
        fd = files.create("open/file")
        files.publish("open/file", "reports/file")
        files.close(fd)
        os.close(root)
    finally:
        os.umask(before)
    data = tmp_path / "some" / "where" / "data"
    assert mode_of(data / "reports" / "file") == 0o640
    for directory in (data.parents[1], data.parent, data, data / "open", data / "reports"):
        assert mode_of(directory) == 0o750, directory


def test_a_name_is_never_taken_twice(files: Files, tmp_path: Path) -> None:
    (tmp_path / "open" / "file").write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        files.create("open/file")
    assert (tmp_path / "open" / "file").read_bytes() == b"kept"


def test_what_is_written_is_appended(files: Files, tmp_path: Path) -> None:
    fd = files.create("open/file")
    files.append(fd, b"one")
    os.lseek(fd, 0, os.SEEK_SET)  # as a reader on the same descriptor does
    files.append(fd, b"two")
    files.cut(fd, 4)
    files.append(fd, b"!")
    files.close(fd)
    assert (tmp_path / "open" / "file").read_bytes() == b"onet!"


def test_a_file_of_a_live_process_is_not_taken(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "open" / "file"
    path.touch()
    script = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert files.open_locked("open/file") is None
        process.kill()
        process.wait()
        fd = files.open_locked("open/file")
        assert fd is not None
        files.close(fd)


def test_a_file_is_locked_from_its_first_moment_to_its_last(files: Files) -> None:
    fd = files.create("open/file")
    assert files.open_locked("open/file") is None
    files.close(fd)
    again = files.open_locked("open/file")
    assert again is not None
    assert files.open_locked("open/file") is None
    files.close(again)


def test_a_file_that_is_gone_is_not_taken(files: Files) -> None:
    assert files.open_locked("open/file") is None


def test_a_file_removed_by_who_held_it_is_not_taken(disk: Disk) -> None:
    """Between our open and our lock, its holder may remove it and let go."""
    path = disk.root / "open" / "file"
    path.touch()

    def remove_it(_number: int, call: str) -> None:
        if call == "stat":
            path.unlink()

    disk.fail = remove_it
    assert disk.files.open_locked("open/file") is None
    assert disk.calls[-1].startswith("close")


def test_row_08_a_short_write_is_a_full_disk(disk: Disk) -> None:
    fd = disk.files.create("open/file")
    disk.fail, disk.is_write_short = once(len(disk.calls) + 1), True
    with pytest.raises(OSError, match="No space left") as caught:
        disk.files.append(fd, b"12345678")
    assert caught.value.errno == errno.ENOSPC
    assert (disk.root / "open" / "file").read_bytes() == b"1234"


def test_row_09_a_sync_whose_journal_was_aborted_meanwhile_fails(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """fdatasync itself returns 0 then."""
    fd = disk.files.create("open/file")
    disk.files.append(fd, b"content")

    def refuse(error: int) -> None:
        monkeypatch.setattr(disk, "posix_fallocate", functools.partial(_fail, error), raising=False)

    refuse(errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        disk.files.sync(fd)
    refuse(errno.EBADF)  # this file system allocates nothing ahead, and has no such journal
    disk.files.sync(fd)


def _fail(error: int, *_: object) -> None:
    raise OSError(error, os.strerror(error))


def test_row_05_a_created_file_keeps_its_name(disk: Disk) -> None:
    disk.files.create("open/file")
    assert "open/file" in names_after_power_cut(disk)


def test_row_05_a_published_file_keeps_its_name_and_content(disk: Disk) -> None:
    fd = disk.files.create("open/file")
    disk.files.append(fd, b"content")
    disk.files.sync(fd)
    disk.files.publish("open/file", "reports/file")
    assert "reports/file" in names_after_power_cut(disk)
    assert (disk.root.with_name("after") / "reports" / "file").read_bytes() == b"content"


def test_row_05_a_file_set_aside_keeps_its_name(disk: Disk) -> None:
    disk.files.create("open/file")
    disk.files.set_aside("open/file", "quarantine/file")
    assert "quarantine/file" in names_after_power_cut(disk)


@pytest.mark.parametrize("operation", ["make_directory", "set_aside"])
def test_row_05_what_another_left_without_a_sync_is_synced(operation: str, disk: Disk) -> None:
    """It stands already, but who made it may have died before it was durable."""
    disk.files.create("open/file")
    arguments = ("reports",) if operation == "make_directory" else ("open/file", "quarantine/file")
    disk.fail = calls_named(["fsync"])
    with pytest.raises(OSError, match="Input/output"):
        getattr(disk.files, operation)(*arguments)
    disk.kill()
    getattr(disk.files, operation)(*arguments)
    assert arguments[-1] in names_after_power_cut(disk)


def test_row_05_the_data_directory_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = install(Disk(tmp_path), monkeypatch)
    disk.close(open_data_directory(tmp_path / "some" / "data"))
    synced = [call for call in disk.calls if call.startswith("fsync")]
    assert synced == ["fsync ", "fsync some"]
    disk.release()


@pytest.mark.parametrize("call", ["fchmod", "fsync"])
def test_a_file_that_could_not_be_created_is_not_left(call: str, disk: Disk) -> None:
    disk.fail = calls_named([call])
    with pytest.raises(OSError, match="Input/output"):
        disk.files.create("open/file")
    assert disk.files.names("open") == []


def test_closing_never_fails(disk: Disk) -> None:
    """Linux lets go of the descriptor also where it reports an error: it may be another file's by the next call."""
    fd = disk.files.create("open/file")
    disk.fail = calls_named(["close"])
    disk.files.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_deleting_what_is_gone_does_no_harm(files: Files) -> None:
    files.delete("open/file")


def test_the_data_directory_is_never_made_anew(files: Files, tmp_path: Path) -> None:
    """A disk that is unmounted, or a directory that is moved away, must not fill what stands at its path later."""
    tmp_path.rename(tmp_path.with_name("moved"))
    tmp_path.mkdir()
    files.create("open/file")
    assert not list(tmp_path.iterdir())
    assert (tmp_path.with_name("moved") / "open" / "file").exists()


def test_a_removed_data_directory_is_an_error(tmp_path: Path) -> None:
    root = open_data_directory(tmp_path / "data")
    (tmp_path / "data").rmdir()
    with pytest.raises(FileNotFoundError):
        Files(root).make_directory("open")
    os.close(root)


def test_free_bytes_is_what_the_disk_says(files: Files, tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    assert abs(files.free_bytes() - disk.f_bavail * disk.f_frsize) < 1024**3


def test_the_file_system_is_named() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/dev/shm")) == "tmpfs"
