"""What waits to be shipped: found as it comes, oldest first, each once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch.ship.backlog import Backlog
from netwatch.storage import shipped
from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId

HERE = "s3://telemetry/here"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "reports").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    yield Files(root)
    os.close(root)


def make(root: Path, day: int, hour: int, number: int = 1) -> str:
    """A file as if it was sealed then; its path."""
    path = SegmentId("0a1b2c3d", number).sealed_path(f"2026-11-{day}T{hour:02}:00:00.000000Z")
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).write_bytes(b"x" * number)
    return path


def mark(files: Files, path: str, bucket: str) -> None:
    fd = files.open_for_reading(path)
    shipped.mark(files, fd, bucket, "0" * 64)
    files.close(fd)


def given(backlog: Backlog) -> list[str]:
    return list(iter(backlog.next, None))


def test_the_oldest_comes_first_whatever_its_day(files: Files, tmp_path: Path) -> None:
    made = [make(tmp_path, day, hour) for day in (24, 22, 23, 21) for hour in (12, 9, 18)]
    backlog = Backlog(files, HERE)
    backlog.look()
    assert given(backlog) == sorted(made)
    assert backlog.waiting.keys() == set(made)
    assert backlog.oldest_s() > 86400


def test_what_has_its_mark_does_not_wait_unless_it_is_another_bucket_s(files: Files, tmp_path: Path) -> None:
    here, elsewhere, nowhere = (make(tmp_path, 22, hour) for hour in (1, 2, 3))
    mark(files, here, HERE)
    mark(files, elsewhere, f"{HERE}/not")
    backlog = Backlog(files, HERE)
    backlog.look()
    assert given(backlog) == [elsewhere, nowhere]
    again = Backlog(files, HERE, is_again=True)
    again.look()
    assert given(again) == [here, elsewhere, nowhere]
    again.done(here)
    make(tmp_path, 22, 4)
    again.look()
    assert here not in given(again)


def test_each_is_given_once_until_it_is_postponed(files: Files, tmp_path: Path) -> None:
    first, second = make(tmp_path, 22, 1), make(tmp_path, 22, 2)
    backlog = Backlog(files, HERE)
    backlog.look()
    assert backlog.next() == first
    backlog.postpone(first)
    third = make(tmp_path, 23, 1)
    backlog.look()
    assert given(backlog) == [second, first, third]


def test_what_is_gone_does_not_wait(files: Files, tmp_path: Path) -> None:
    first, second = make(tmp_path, 22, 1, number=5), make(tmp_path, 22, 2)
    backlog = Backlog(files, HERE)
    backlog.look()
    assert sum(backlog.waiting.values()) == 6
    (tmp_path / first).unlink()
    backlog.look()
    assert backlog.waiting == {second: 1}
    assert given(backlog) == [second]


def test_what_is_not_sealed_is_not_ours(files: Files, tmp_path: Path) -> None:
    path = make(tmp_path, 22, 1)
    for name in ("notes.txt", f"{os.path.basename(path)}.part"):
        (tmp_path / path).with_name(name).touch()
    (tmp_path / "reports/date=2026-11-23").touch()
    (tmp_path / "reports/lost+found").mkdir()
    backlog = Backlog(files, HERE)
    backlog.look()
    assert given(backlog) == [path]
