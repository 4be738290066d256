"""Stand-ins that the storage tests share: lines as a worker makes them, and a disk whose failures are chosen.

:class:`Disk` takes the place of the module ``os`` inside ``netwatch.storage.files``, so that every system call counts:
a missing fdatasync shows, whether it is missing in the files or in who should have called them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import zstandard

from netwatch.storage import layout
from netwatch.storage.files import Files
from netwatch.storage.store import Store, Unstored
from netwatch.storage.window import Window

T = TypeVar("T")
RECEIVED_AT: Final = "2026-11-22T10:24:10.123456Z"


def made_line(number: int, *, filling: int = 0, received_at: str = RECEIVED_AT, kind: int = 0) -> bytes:
    """A line as a worker makes it, the same at each run; its report has about ``filling`` bytes more than nothing."""
    digest = zlib.crc32(b"%d" % number)
    report = {"clientId": f"client-{digest:08x}", "hosts": [], "filling": f"{digest:08x}" * (filling // 8)}
    line_id = f"0193a5b0-0000-7000-8{kind:03x}-{number:012x}"
    members = {"id": line_id, "receivedAt": received_at, "kind": "report", "server": "host1", "report": report}
    text = json.dumps(members, separators=(",", ":")).removesuffix("}").encode()
    return b'%b,"crc":"%08x"}\n' % (text, zlib.crc32(text))


def made_lines(first: int, count: int, **options: Any) -> bytes:
    """``count`` lines, numbered from ``first``."""
    return b"".join(made_line(number, **options) for number in range(first, first + count))


def made_store(files: Files, **changes: Any) -> Store:
    """A store with the settings that the tests want, which never asks for room on the disk."""
    settings: dict[str, Any] = {"compression_level": 1, "seal_bytes": 4000, "seal_after_s": 60.0, "min_free_bytes": 0}
    window = Window(900.0, 200_000)
    return Store(files, window, **({"instance": layout.new_instance(), "deaths": {}} | settings | changes))


def seal_files(data: Path, numbers: Iterable[int], lines: int, **options: Any) -> None:
    """Add sealed files of so many lines each to a data directory; no two of different numbers have equal lines."""
    root = os.open(data, os.O_RDONLY)
    store = made_store(Files(root), seal_bytes=1 << 30)
    store.start(0.0)
    for number in numbers:
        store.commit([made_lines(number * lines, lines, filling=200, **options)], 0.0)
        store.seal("asked")
        store.tend(0.0)
    assert store.close(0.0)
    os.close(root)


class Killed(BaseException):
    """The process ends at this system call; what unwinds the stack can do nothing more."""


class Disk:
    """``os`` for ``netwatch.storage.files``, below the directory ``root``: counts system calls, fails, kills, forgets.

    The calls are carried out for real, but for fsync and fdatasync, which are only noted: what was synced is what
    :meth:`after_power_cut` brings back. Everything that stands in ``root`` at first counts as synced.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.files = Files(self.root_fd)
        self.calls: list[str] = []
        """The system calls so far, with what they were about."""
        self.fail: Callable[[int, str], int | None] = lambda _number, _call: None
        """Says for the call of that number (from 1) whether it fails, and with which errno."""
        self.is_write_short = False
        """Whether a write that fails leaves half of its data in the file."""
        self.kill_at: int | None = None
        """The process is killed before the call of this number."""
        self._is_dead = False
        self._opened: set[int] = set()
        self._held: dict[int, int] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        self._lost: dict[int, list[tuple[int, int]]] = {}
        self._deleted: set[tuple[int, str]] = set()
        self._renamed: list[tuple[int, tuple[int, str], int]] = []
        for directory, _, names in os.walk(root):
            fd = os.open(directory, os.O_RDONLY)
            self._hold(fd)
            self._note_synced(fd)
            os.close(fd)
            for name in names:
                fd = os.open(Path(directory, name), os.O_RDONLY)
                self._hold(fd)
                self._note_synced(fd)
                os.close(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def kill(self) -> None:
        """End the process: its files are closed and so unlocked. The next one can start on the same disk."""
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()
        self._is_dead = False
        self.kill_at = None
        self.fail = lambda _number, _call: None
        self.calls.clear()

    def release(self) -> None:
        """Close everything."""
        self.kill()
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        os.close(self.root_fd)

    def after_power_cut(self, target: Path, tail: str, *, are_deletions_kept: bool) -> None:
        """Fill the new directory ``target`` with what the disk has after a power cut at this moment.

        ``tail`` says what became of the bytes that were not synced: "lost", "half" of them "zeros", or all of them.
        A name that was not synced is lost; a deletion that was not synced is kept or not. A rename is atomic: when
        the directory it came from is synced, it stands in the other one too.
        """
        self._rebuild(os.fstat(self.root_fd).st_ino, target, tail, are_deletions_kept)

    def _rebuild(self, directory: int, target: Path, tail: str, are_deletions_kept: bool) -> None:
        target.mkdir()
        for name, inode in self._names.get(directory, {}).items():
            if are_deletions_kept and (directory, name) in self._deleted:
                continue
            if stat.S_ISDIR(os.fstat(self._held[inode]).st_mode):
                self._rebuild(inode, target / name, tail, are_deletions_kept)
            else:
                (target / name).write_bytes(self._content_after(inode, tail))

    def _content_after(self, inode: int, tail: str) -> bytes:
        synced = self._contents.get(inode, b"")
        unsynced = self._content(inode)[len(synced) :]
        if tail == "lost":
            return synced
        if tail == "half":
            return synced + unsynced[: len(unsynced) // 2]
        assert tail == "zeros"
        return synced + bytes(len(unsynced))

    def _content(self, inode: int) -> bytes:
        content = bytearray(os.pread(self._held[inode], os.fstat(self._held[inode]).st_size, 0))
        for start, end in self._lost.get(inode, ()):
            content[start:end] = bytes(len(content[start:end]))
        return bytes(content)

    def _hold(self, fd: int) -> None:
        """Keep the file, so that its number is not given to another and it can be read after its last name is gone."""
        inode = os.fstat(fd).st_ino
        if inode not in self._held:
            self._held[inode] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)

    def _note_synced(self, fd: int) -> None:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            with os.scandir(fd) as entries:
                self._names[info.st_ino] = {entry.name: entry.inode() for entry in entries}
            for source, (target, name), inode in self._renamed:  # a rename is never half on the disk
                if source == info.st_ino and os.fstat(self._held[inode]).st_nlink:
                    self._names.setdefault(target, {})[name] = inode
        else:
            self._contents[info.st_ino] = self._content(info.st_ino)

    def _note_lost(self, fd: int) -> None:
        """After a failed fsync the pages are clean, and no later one brings the data to the disk."""
        info = os.fstat(fd)
        if not stat.S_ISDIR(info.st_mode):
            synced = len(self._contents.get(info.st_ino, b""))
            self._lost.setdefault(info.st_ino, []).append((synced, info.st_size))

    def _name(self, path: str, dir_fd: int | None) -> tuple[int, str]:
        directory, name = os.path.split(path)
        return os.stat(directory or ".", dir_fd=dir_fd).st_ino, name

    def _note_name(self, path: str, dir_fd: int | None) -> None:
        self._deleted.discard(self._name(path, dir_fd))

    def _enter(self, call: str, about: str | int = "") -> int | None:
        """Count the call; the errno it fails with, if any."""
        if self._is_dead:
            raise Killed
        if isinstance(about, int):
            about = os.readlink(f"/proc/self/fd/{about}").removeprefix(str(self.root)).removeprefix("/")
        self.calls.append(f"{call} {about}")
        if len(self.calls) == self.kill_at:
            self._is_dead = True
            raise Killed
        return self.fail(len(self.calls), call)

    def _do(self, call: str, about: str | int, action: Callable[[], T]) -> T:
        if error := self._enter(call, about):
            raise OSError(error, os.strerror(error))
        return action()

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = self._do("open", path, lambda: os.open(path, flags, mode, dir_fd=dir_fd))
        if flags & os.O_CREAT:
            self._note_name(path, dir_fd)
        self._opened.add(fd)
        self._hold(fd)
        return fd

    def close(self, fd: int) -> None:
        error = self._enter("close", fd)
        self._opened.discard(fd)
        os.close(fd)  # Linux lets go of the descriptor even where it reports an error
        if error:
            raise OSError(error, os.strerror(error))

    def write(self, fd: int, data: bytes) -> int:
        if error := self._enter("write", fd):
            if self.is_write_short:
                return os.write(fd, data[: len(data) // 2])
            raise OSError(error, os.strerror(error))
        return os.write(fd, data)

    def fsync(self, fd: int, call: str = "fsync") -> None:
        try:
            self._do(call, fd, lambda: self._note_synced(fd))
        except OSError:
            self._note_lost(fd)
            raise

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd, "fdatasync")

    def ftruncate(self, fd: int, size: int) -> None:
        self._do("ftruncate", fd, lambda: os.ftruncate(fd, size))
        inode = os.fstat(fd).st_ino
        self._lost[inode] = [(start, end) for start, end in self._lost.get(inode, ()) if start < size]

    def rename(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._do("rename", target, lambda: os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))
        self._note_name(target, dst_dir_fd)
        inode = os.stat(target, dir_fd=dst_dir_fd).st_ino
        self._renamed.append((self._name(source, src_dir_fd)[0], self._name(target, dst_dir_fd), inode))

    def link(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._do("link", target, lambda: os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    def unlink(self, path: str, *, dir_fd: int) -> None:
        self._do("unlink", path, lambda: os.unlink(path, dir_fd=dir_fd))
        self._deleted.add(self._name(path, dir_fd))

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int) -> None:
        self._do("mkdir", path, lambda: os.mkdir(path, mode, dir_fd=dir_fd))
        fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
        self._hold(fd)
        os.close(fd)

    def chmod(self, path: str, mode: int, *, dir_fd: int) -> None:
        self._do("chmod", path, lambda: os.chmod(path, mode, dir_fd=dir_fd))

    def fchmod(self, fd: int, mode: int) -> None:
        self._do("fchmod", fd, lambda: os.fchmod(fd, mode))

    def stat(self, path: str, *, dir_fd: int) -> os.stat_result:
        return self._do("stat", path, lambda: os.stat(path, dir_fd=dir_fd))

    def scandir(self, fd: int) -> Any:
        return self._do("scandir", fd, lambda: os.scandir(fd))

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        return self._do("fstatvfs", fd, lambda: os.fstatvfs(fd))


def install(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Let ``netwatch.storage.files`` work on ``disk`` from now on."""
    monkeypatch.setattr("netwatch.storage.files.os", disk)
    return disk


class Client:
    """Who posts to a store, and remembers what it was told: each group is acked, refused, or unknown at a crash."""

    def __init__(self) -> None:
        self.acked: list[bytes] = []
        self.refused: list[bytes] = []
        self.unknown = b""
        self._number = 0

    def lines(self, count: int, **options: Any) -> bytes:
        """The next ``count`` lines."""
        self._number += count
        return made_lines(self._number - count, count, **options)

    def post(self, store: Store, lines: bytes, now_s: float = 0.0) -> bool:
        """Commit the lines as one group; whether they were acked."""
        self.unknown = lines
        try:
            store.commit([lines], now_s)
        except Unstored:
            self.refused, self.unknown = self.refused + lines.splitlines(), b""
            return False
        self.acked, self.unknown = self.acked + lines.splitlines(), b""
        return True

    def resend(self, store: Store, now_s: float = 0.0) -> None:
        """Resend what got no answer, as a worker does that lost its link, and the writer takes it."""
        assert store.is_recovered
        lines, missing = self.unknown, store.missing(self.unknown, 0.0)
        try:
            is_acked = not missing or self.post(store, missing, now_s)
        except Killed:
            self.unknown = lines
            raise
        known = [line for line in lines.splitlines() if line not in missing]
        self.acked += known if is_acked else []
        self.refused += [] if is_acked else known
        self.unknown = b""

    def demand_stored(self, stored: Iterable[bytes]) -> None:
        """Every acked line once, and nothing else but lines that were refused or are unknown, once at most."""
        counts = Counter(stored)
        assert [line for line in self.acked if not counts[line]] == [], "acked lines are lost"
        assert [line for line, count in counts.items() if count > 1] == [], "lines are stored twice"
        others = counts.keys() - {*self.acked, *self.refused, *self.unknown.splitlines()}
        assert others == set(), "lines are stored that nobody sent so"


def sealed_files(root: Path) -> list[Path]:
    """The sealed files, by their names."""
    return sorted(root.glob("reports/*/*"))


def sealed_lines(root: Path) -> list[bytes]:
    """The lines of all sealed files; each of them must be one whole frame with its checksum, of whole lines."""
    lines = []
    for path in sealed_files(root):
        frame = zstandard.ZstdDecompressor().decompressobj()
        content = frame.decompress(path.read_bytes())
        assert frame.eof, path
        assert not frame.unused_data, path
        assert content.endswith(b"\n"), path
        lines += content.splitlines()
    return lines


def everything(root: Path) -> dict[str, bytes]:
    """Every file below the directory, with what is in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def blocks(frame: bytes) -> Iterator[tuple[int, int]]:
    """Where each block of the frame starts (its header of 3 bytes) and ends, after RFC 8878."""
    position = zstandard.frame_header_size(frame)
    while position + 3 <= len(frame):
        value = int.from_bytes(frame[position : position + 3], "little")
        end = position + 3 + (1 if value >> 1 & 3 == 1 else value >> 3)
        yield position, end
        position = end
        if value & 1:
            return


def once(number: int, error: int = errno.EIO) -> Callable[[int, str], int | None]:
    """The call of that number fails."""
    return lambda current, _call: error if current == number else None


def from_then_on(number: int, error: int = errno.EIO) -> Callable[[int, str], int | None]:
    """The call of that number fails, and all after it."""
    return lambda current, _call: error if current >= number else None


def calls_named(names: Sequence[str], error: int = errno.EIO) -> Callable[[int, str], int | None]:
    """All calls of these names fail."""
    return lambda _number, call: error if call in names else None
