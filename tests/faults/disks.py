"""Disks that can be lost, filled and taken away: an ext4 on a loop device, and a small tmpfs. Both need root.

A power cut is the ioctl EXT4_IOC_SHUTDOWN without a flush of the journal: from then on nothing reaches the device, and
what the file system had not brought there is gone at the next mount.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
EXT4_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = 2
UNMOUNT_S: Final = 10.0


class Disk:
    """A file system of our own at ``path``."""

    def __init__(self, path: Path, kind: str, options: str) -> None:
        self.path = path
        self.device = "none"
        self._command = ["mount", "-t", kind, "-o", options]
        path.mkdir()

    def mount(self) -> None:
        """Mount it; raises CalledProcessError, with what mount said in ``stderr``."""
        run(*self._command, self.device, str(self.path))

    def unmount(self) -> None:
        """Unmount it once the processes that used it have ended."""
        until_s = time.monotonic() + UNMOUNT_S
        while True:
            done = subprocess.run(["umount", str(self.path)], check=False, capture_output=True, text=True)
            if not done.returncode:
                return
            assert time.monotonic() < until_s, done.stderr
            time.sleep(0.01)

    def remove(self) -> None:
        """Whatever a test has left of it, take it away."""
        while os.path.ismount(self.path):
            run("umount", "-l", str(self.path))

    def fill(self, leave_bytes: int = 0) -> Path:
        """Take its room but for so many bytes; the file that takes it."""
        filler = self.path / "filler"
        room = os.statvfs(self.path)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave_bytes)
        return filler


class Tmpfs(Disk):
    """16 MiB of memory, and room for 64 files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "tmpfs", f"size={16 * MIB},nr_inodes=64")


class Ext4(Disk):
    """48 MiB on a loop device."""

    def __init__(self, directory: Path, options: str = "defaults") -> None:
        super().__init__(directory / "disk", "ext4", options)
        self._image = directory / "image"
        with self._image.open("wb") as file:
            file.truncate(48 * MIB)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", str(self._image))
        self.device = run("losetup", "--find", "--show", str(self._image))

    def remove(self) -> None:
        super().remove()
        if self.device != "none":
            run("losetup", "--detach", self.device)
            self.device = "none"

    def cut_power(self) -> None:
        """Nothing reaches the disk any more; its processes live on and get errors."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def fail(self) -> None:
        """The kernel finds an error in the file system; with errors=remount-ro it takes nothing more."""
        Path(f"/sys/fs/ext4/{Path(self.device).name}/trigger_fs_error").write_text("1")

    def power_on(self) -> None:
        """What a machine finds that starts again. Whoever used the disk must be ended.

        It is a copy on another device: where a process elsewhere has a mount namespace of its own, made meanwhile, the
        old file system lives on in it, dead as it is, and its device would be mounted as that.
        """
        self.unmount()
        old, device = self._image, self.device
        self._image = old.with_suffix(f".{int(old.suffix[1:] or 0) + 1}")
        run("cp", "--sparse=always", str(old), str(self._image))
        self.device = run("losetup", "--find", "--show", str(self._image))
        run("losetup", "--detach", device)
        old.unlink()
        self.mount()


def run(*command: str) -> str:
    """What the command printed; raises CalledProcessError with what it complained of."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@cache
def why_not(kind: str) -> str:
    """Why there can be no such disk here; "" if there can."""
    if os.geteuid() != 0:
        return f"needs root: it mounts {kind}"
    with tempfile.TemporaryDirectory(prefix="netwatch-") as name:
        directory = Path(name)
        try:
            disk = Ext4(directory) if kind == "ext4" else Tmpfs(directory / "disk")
        except FileNotFoundError as error:
            return f"needs {error.filename} (Debian's packages e2fsprogs and mount)"
        except subprocess.CalledProcessError as error:
            return f"no loop device: {error.stderr.strip()}"
        try:
            disk.mount()
        except subprocess.CalledProcessError as error:
            return f"{kind} cannot be mounted here: {error.stderr.strip()}"
        finally:
            disk.remove()
    return ""
