"""The few file operations that netwatch's promise rests on, below a data directory that was opened once.

Everything is relative to that open directory, so that a disk that is unmounted later fails instead of letting the root
fill. A failed operation raises OSError; nothing here is tried again, least of all an fsync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netwatch.metrics import table
from netwatch.metrics.board import Meter

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750


class Files:
    """The data directory: ``root`` is its open descriptor; paths are relative to it. ``meter`` counts the syncs."""

    def __init__(self, root: int, meter: Meter | None = None) -> None:
        self._root = root
        self._meter = meter or Meter()

    def create(self, path: str) -> int:
        """A new empty file, locked, ready to append to; its name is durable when this returns."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, FILE_MODE, dir_fd=self._root)
        try:
            os.fchmod(fd, FILE_MODE)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.sync_directory(os.path.dirname(path))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path, dir_fd=self._root)
            self.close(fd)
            raise
        return fd

    def open_locked(self, path: str) -> int | None:
        """An existing file, locked until it is closed; None if a live process holds it or it is gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND, dir_fd=self._root)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(path, dir_fd=self._root)  # who held it before may have removed it in between
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return fd

    def open_for_reading(self, path: str) -> int:
        """An existing file, to read. What is none, a pipe say, raises OSError, and is not waited for."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._root)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return fd

    def open_directory(self, path: str) -> int:
        """An existing directory, to look into or to mark."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)

    def descriptor_path(self, path: str) -> str:
        """An absolute path for programs in this process that open files themselves, as long as the root is open."""
        return f"/proc/self/fd/{self._root}/{path}"

    def attribute(self, path: str, name: str) -> bytes | None:
        """The extended attribute ``name`` of a file; None if it has none, or the file system keeps none."""
        fd = self.open_for_reading(path)
        try:
            return os.getxattr(fd, name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise
        finally:
            os.close(fd)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        """Give the file an extended attribute, whole or not at all; a power cut may take it back."""
        os.setxattr(fd, name, value)

    def is_linked(self, fd: int) -> bool:
        """Whether the file still has a name; what is written to one that was deleted is gone when it is closed."""
        return os.fstat(fd).st_nlink > 0

    def append(self, fd: int, data: bytes) -> None:
        """Write all of ``data`` at the end, or raise: a disk that takes only a part of it is full."""
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self, fd: int) -> None:
        """Return once what was appended survives a power cut.

        An ext4 whose journal is aborted meanwhile, by an error that makes it read-only, drops the transaction, and yet
        fdatasync can return 0: in one of twelve such errors with Linux 6.18 (jbd2_complete_transaction takes one that
        is gone for one that is done). But what needs the journal fails from then on, and to allocate a byte that has
        its place needs it; that takes 3 µs.
        """
        began_ns = time.monotonic_ns()
        os.fdatasync(fd)
        try:
            os.posix_fallocate(fd, 0, 1)
        except OSError as error:
            if error.errno != errno.EBADF:  # glibc's word for a file system that cannot, where a file is appended to
                raise
        took_ns = time.monotonic_ns() - began_ns
        self._meter.observe(table.SYNC_SECONDS, took_ns)
        self._meter.set(table.LAST_SYNC_SECONDS, took_ns)
        self._meter.set(table.LAST_SYNC_AT, time.time_ns())

    def cut(self, fd: int, size: int) -> None:
        """Cut the file back to its first ``size`` bytes."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Let go of the file and its lock. It never fails: what counts was synced before."""
        with contextlib.suppress(OSError):
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""
        try:
            os.stat(path, dir_fd=self._root)
        except FileNotFoundError:
            return False
        return True

    def publish(self, source: str, target: str) -> None:
        """Give the synced file ``source`` its final name; the name is durable when this returns."""
        directory = os.path.dirname(target)
        self.make_directory(directory)
        os.rename(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        self.sync_directory(directory)

    def set_aside(self, source: str, target: str) -> None:
        """Give ``source`` the second name ``target``, durably; no harm if it has it already."""
        with contextlib.suppress(FileExistsError):  # who made it may have died before it was durable
            os.link(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        self.sync_directory(os.path.dirname(target))

    def delete(self, path: str) -> None:
        """Remove the name; that it may come back after a power cut has to be harmless. No harm if it is gone."""
        try:
            os.unlink(path, dir_fd=self._root)
        except FileNotFoundError:
            return

    def delete_empty_directory(self, path: str) -> None:
        """Remove the directory if nothing is in it."""
        try:
            os.rmdir(path, dir_fd=self._root)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise

    def make_directory(self, path: str) -> None:
        """A directory whose name is durable when this returns; no harm if it exists. A file there is an error."""
        try:
            os.mkdir(path, DIRECTORY_MODE, dir_fd=self._root)
        except FileExistsError:  # who made it may have died before it was durable
            os.close(self.open_directory(path))
        else:
            os.chmod(path, DIRECTORY_MODE, dir_fd=self._root)
        self.sync_directory(os.path.dirname(path))

    def sync_directory(self, path: str) -> None:
        """Return once the names in the directory ("" is the data directory itself) survive a power cut."""
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def size_bytes(self, fd: int) -> int:
        """How large the file is."""
        return os.fstat(fd).st_size

    def entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        """What is in the directory, in no order, listed piece by piece: there may be very many."""
        fd = self.open_directory(path)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """The names of the files in the directory, sorted; links, pipes and directories are none."""
        return sorted(entry.name for entry in self.entries(path) if entry.is_file(follow_symlinks=False))

    def free_bytes(self) -> int:
        """How much an unprivileged process may still write to this disk, in bytes."""
        disk = os.fstatvfs(self._root)
        return disk.f_bavail * disk.f_frsize


def open_data_directory(path: Path) -> int:
    """The directory ``path``, made with mode 0750 if it is not there, opened; its name is durable when this returns."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(DIRECTORY_MODE)
        directory.chmod(DIRECTORY_MODE)
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, such as ``ext4`` (from /proc/self/mountinfo); "" if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return ""
