"""What the supervisor does before it starts anything; the whole of it is seen from outside in tests/system."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from netwatch import server
from netwatch.errors import StartError


def logged(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("kind", "is_unsafe"),
    [
        ("ext4", False), ("xfs", False), ("btrfs", False), ("zfs", False), ("", False), ("fuseblk", False),
        ("tmpfs", True), ("ramfs", True), ("overlay", True), ("nfs", True), ("nfs4", True), ("cifs", True),
        ("fuse", True), ("fuse.sshfs", True),
    ],
)  # fmt: skip
def test_a_file_system_that_cannot_keep_the_promise_is_warned_of(
    kind: str, is_unsafe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "file_system", lambda _: kind)
    os.close(server._open_root(tmp_path / "data"))
    entries = logged(capfd)
    assert bool(entries) == is_unsafe
    if is_unsafe:
        (entry,) = entries
        assert (entry["level"], entry["event"], entry["file_system"]) == ("warning", "unsafe_file_system", kind)
        assert entry["data_dir"] == str(tmp_path / "data")
        assert entry["why"]


def test_the_data_directory_is_made_with_its_mode(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        root = server._open_root(tmp_path / "a" / "b")
    finally:
        os.umask(previous)
    try:
        assert stat.S_IMODE(os.fstat(root).st_mode) == 0o750
    finally:
        os.close(root)


def test_a_file_in_place_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    for path in (tmp_path / "data", tmp_path / "data" / "below"):
        with pytest.raises(StartError, match=r"Cannot use the data directory .*\(--data-dir\)\.$") as caught:
            server._open_root(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 1
