"""Following a data directory: every line once and in order, whatever the writer does between two looks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netwatch.reports import ID
from netwatch.storage.files import Files
from netwatch.storage.reader import Reader
from netwatch.storage.store import KEEP_LEFTOVER_S
from tests.doubles import Client, Disk, install, made_line, made_lines, made_store

STEPS = 150


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "data"
    root.mkdir()
    disk = install(Disk(root), monkeypatch)
    yield disk
    disk.release()


class OwnFiles(Files):
    """The files as another process has them: what kills the writer does not close them."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.root_fd)
        self._root_fd = disk.root_fd

    def open_for_reading(self, path: str) -> int:
        return os.open(path, os.O_RDONLY, dir_fd=self._root_fd)

    def close(self, fd: int) -> None:
        os.close(fd)


class Tail:
    """What `netwatch tail -f` reads."""

    def __init__(self, disk: Disk) -> None:
        self.warnings: list[str] = []
        self.reader = Reader(OwnFiles(disk), self.warnings.append, is_following=True)
        self.lines = list(self.reader.stored())

    def look(self) -> None:
        self.lines += list(self.reader.new())


class Life:
    """A server's life on the disk, one random step after the other; the day changes on the way."""

    def __init__(self, disk: Disk, chance: random.Random) -> None:
        self.disk = disk
        self.chance = chance
        self.client = Client()
        self.now_s = 0.0
        self.seals_total = 0
        self.store = made_store(disk.files)
        self.store.start(self.now_s)

    def step(self) -> None:
        kinds: list[tuple[int, Callable[[], None]]] = [
            (20, self.post),
            (6, self.seal),
            (3, self.wait),
            (2, self.kill),
            (1, self.kill_in_a_commit),
            (1, self.restart),
            (1, self.fail),
        ]
        weights, actions = zip(*kinds, strict=True)
        self.chance.choices(actions, weights)[0]()
        self.now_s += 0.1
        self.store.tend(self.now_s)

    def post(self) -> None:
        day = 22 + min(int(self.now_s / 20), 8)
        received_at = f"2026-11-{day}T10:{int(self.now_s // 60):02}:{self.now_s % 60:09.6f}Z"
        filling = self.chance.choice([0, 0, 0, 300, 60_000])
        lines = self.client.lines(self.chance.randint(1, 9), received_at=received_at, filling=filling)
        assert self.client.post(self.store, lines, self.now_s)

    def seal(self) -> None:
        self.store.seal("asked")

    def wait(self) -> None:
        self.now_s += KEEP_LEFTOVER_S
        self.store.tend(self.now_s)

    def kill(self) -> None:
        self.disk.kill()
        self.start()

    def kill_in_a_commit(self) -> None:
        """Only a part of the group reaches the disk."""
        before = {path: path.stat().st_size for path in self.disk.root.glob("open/*")}
        self.post()
        group = self.client.acked[-1]
        grown = [path for path in self.disk.root.glob("open/*") if path.stat().st_size > before.get(path, 0)]
        assert grown, group
        with grown[0].open("r+b") as file:
            file.truncate(self.chance.randint(before.get(grown[0], 0), grown[0].stat().st_size - 1))
        lost = Reader(OwnFiles(self.disk), print)
        kept = set(lost.stored())
        lost.close()
        self.client.acked = [line for line in self.client.acked if line in kept]
        self.kill()

    def restart(self) -> None:
        assert self.store.close(self.now_s)
        self.disk.kill()
        self.start()

    def fail(self) -> None:
        """A sync fails: the segment is given up to recovery, and the next group goes to another."""
        self.disk.fail = lambda _number, call: 5 if call == "fdatasync" else None
        assert not self.client.post(self.store, self.client.lines(2), self.now_s)
        self.disk.fail = lambda _number, _call: None

    def start(self) -> None:
        self.store = made_store(self.disk.files)
        self.store.start(self.now_s)


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(10, 200))])
def test_every_line_is_read_once_and_in_order(disk: Disk, seed: int) -> None:
    chance = random.Random(seed)
    life = Life(disk, chance)
    for _ in range(chance.randint(0, 20)):
        life.step()
    tail = Tail(disk)
    eagerness = chance.choice([0.02, 0.2, 0.8])
    for _ in range(STEPS):
        life.step()
        if chance.random() < eagerness:
            tail.look()
    for _ in range(2):
        tail.look()
    refused = set(life.client.refused)  # some may have been seen before they were cut off again
    found = [line[ID] for line in tail.lines if line not in refused]
    assert found == [line[ID] for line in life.client.acked]
    assert set(life.client.acked) <= set(tail.lines)
    assert len(set(tail.lines)) == len(tail.lines)
    assert tail.warnings == []
    tail.reader.close()


def test_the_newest_lines_are_the_last_of_all(disk: Disk) -> None:
    life = Life(disk, random.Random(7))
    for _ in range(100):
        life.step()
    reader = Reader(OwnFiles(disk), print)
    everything = list(reader.stored())
    reader.close()
    for count in (0, 1, 2, 17, 60, 10_000):
        reader = Reader(OwnFiles(disk), print)
        assert reader.newest(count, lambda _line: True) == everything[len(everything) - count :][:count] or count > len(
            everything
        )
        reader.close()


def test_after_the_newest_lines_comes_what_follows(disk: Disk) -> None:
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_lines(0, 5)], 0.0)
    store.tend(0.0)
    store.seal("asked")
    store.commit([made_lines(5, 5)], 0.0)
    reader = Reader(OwnFiles(disk), print, is_following=True)
    found = reader.newest(7, lambda _line: True)
    store.commit([made_line(10)], 0.0)
    store.seal("asked")
    found += [*reader.new(), *reader.new()]
    reader.close()
    assert found == made_lines(3, 8).splitlines()


def test_what_is_only_found_now_is_read_at_the_next_look(disk: Disk) -> None:
    """A listing may have missed a file that comes before it."""
    store = made_store(disk.files)
    store.start(0.0)
    store.commit([made_line(0)], 0.0)
    tail = Tail(disk)
    for number in range(1, 4):
        store.seal("asked")
        store.tend(0.0)
        store.commit([made_line(number)], 0.0)
    (second,) = disk.root.glob("reports/*/*-000002.jsonl.zst")
    second.rename(disk.root / "missed")
    tail.look()
    (disk.root / "missed").rename(second)
    tail.look()
    tail.look()
    assert tail.lines == made_lines(0, 4).splitlines()
    tail.reader.close()
