"""What the fault suite starts from: servers that never outlive their test, and disks that are always unmounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disks import Disk, Ext4, Tmpfs, why_not
from tests.system.conftest import make_server, serve

__all__ = ["ext4", "make_server", "serve", "tmpfs"]

NewExt4 = Callable[..., Ext4]


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[NewExt4]:
    """`ext4(options)`: a new ext4 on a loop device, mounted; all are taken away at the end."""
    if reason := why_not("ext4"):
        pytest.skip(reason)
    disks: list[Disk] = []

    def make(options: str = "defaults") -> Ext4:
        directory = tmp_path / f"ext4-{len(disks)}"
        directory.mkdir()
        disk = Ext4(directory, options)
        disks.append(disk)
        disk.mount()
        return disk

    yield make
    for disk in disks:
        disk.remove()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Tmpfs]:
    """A disk of 16 MiB in memory."""
    if reason := why_not("tmpfs"):
        pytest.skip(reason)
    disk = Tmpfs(tmp_path / "tmpfs")
    disk.mount()
    yield disk
    disk.remove()
