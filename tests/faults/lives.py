"""Lives of a real writer, with a fault at a chosen system call; a worker played by hand notes what it was told.

A fault is put in front of each system call that touches the disk or answers: strace counts a process's calls by their
names, so a case is a name and a number.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.wire import RawLink, make_lines
from tests.writer_process import DEADLINE_S, WriterHouse, WriterProcess, wait_until, writer_house

CALLS: Final = (
    "mkdir,mkdirat,openat,chmod,fchmod,fchmodat,flock,write,fdatasync,fallocate,fsync,ftruncate,linkat,"
    "rename,renameat,renameat2,unlink,unlinkat,sendto"
)
LINK_ID: Final = b"the same worker."
_STARTED: Final = "writev"
"""What a writer's process does when Python is up; what comes before has nothing to do with the disk."""


class Case(NamedTuple):
    """The ``number``th call of this ``name``, from 1."""

    name: str
    number: int

    def inject(self, fault: str) -> list[str]:
        """strace's options that bring the fault there."""
        return ["-o", "/dev/null", "-e", f"trace={CALLS}", f"--inject={self.name}:{fault}:when={self.number}"]

    @property
    def may_be_missed(self) -> bool:
        """Whether a life may have one less: the clock decides on heartbeats, and Python's caches on what it opens."""
        return self.name in ("sendto", "openat")

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


class Worker:
    """Sends batches one after another to whatever writer lives, and notes what became of their lines."""

    def __init__(self, house: WriterHouse) -> None:
        self.acked: list[bytes] = []
        self.sent: list[bytes] = []
        self.unanswered = b""
        self._house = house
        self._link: RawLink | None = None
        self._number = 0
        self._first_sent_s = 0.0

    def post(self, writer: WriterProcess, count: int = 2) -> bool:
        """A batch of ``count`` new lines: whether the writer has answered."""
        self.unanswered = b"".join(make_lines(count))
        self.sent += self.unanswered.splitlines()
        self._number += 1
        self._first_sent_s = time.monotonic()
        return self._send(writer, is_resend=False)

    def resend(self, writer: WriterProcess) -> None:
        """Send the batch again that got no answer from the last writer, if there is one. It must be stored now."""
        self.hang_up()
        if self.unanswered:
            assert self._send(writer, is_resend=True)
            assert not self.unanswered, "a resend was refused"

    def _send(self, writer: WriterProcess, *, is_resend: bool) -> bool:
        try:
            self._link = self._link or self._house.link(LINK_ID)
            self._link.send(self._number, self.unanswered, first_sent_s=self._first_sent_s, is_resend=is_resend)
            until_s = time.monotonic() + DEADLINE_S
            while not self._link.has_news(0.01):  # a link that nobody accepts waits for the next writer
                assert time.monotonic() < until_s
                if not writer.is_alive:
                    return False
            is_stored = self._link.ack(self._number) == "stored"
        except (EOFError, ConnectionError):
            return False
        if is_stored:
            self.acked += self.unanswered.splitlines()
        if is_stored or not is_resend:
            self.unanswered = b""
        return True

    def hang_up(self) -> None:
        if self._link:
            self._link.close()
            self._link = None

    def audit(self) -> None:
        """Once all is sealed: what was acked stands there once, and nothing twice, nor what nobody sent."""
        stored = Counter(self._house.sealed_lines().splitlines())
        lost = [line for line in self.acked if not stored[line]]
        assert lost == [], f"{len(lost)} of {len(self.acked)} acked lines are lost"
        assert max(stored.values(), default=1) == 1, "lines are stored twice"
        assert stored.keys() <= set(self.sent), "lines are stored that nobody sent"
        assert self._house.open_files() == []


Life = Callable[[WriterHouse, Worker, list[str]], int]


def first_life(house: WriterHouse, worker: Worker, strace: list[str]) -> int:
    """A first start, three commits of which each is sealed, a drain; as far as the writer gets. Its exit code."""
    return _live(house, worker, strace, batches=3)


def second_life(house: WriterHouse, worker: Worker, strace: list[str]) -> int:
    """A recovery of two commits that a killed writer left, then a commit that is sealed, a drain. The exit code."""
    killed = house.start()
    for _ in range(2):
        assert worker.post(killed, 10)
    wait_until(lambda: len(house.open_files()) == 2, "the next segment")  # so that each recovery finds the same
    killed.kill()
    worker.hang_up()
    return _live(house, worker, strace, batches=1)


def _live(house: WriterHouse, worker: Worker, strace: list[str], *, batches: int) -> int:
    writer = house.start(strace=strace, seal_bytes=1)
    with contextlib.suppress(EOFError):
        writer.wait_for("recovered")
    for _ in range(batches):
        sealed, acked = len(house.sealed_files()), len(worker.acked)
        if not worker.post(writer):
            break
        if len(worker.acked) > acked:
            _wait_sealed(house, writer, sealed + 1)
    else:
        worker.hang_up()
        writer.drain()
    code = writer.wait()
    said = writer.stderr()
    assert said.count("Traceback") == said.count("Exception ignored when trying to write to the signal wakeup fd"), said
    return code


def _wait_sealed(house: WriterHouse, writer: WriterProcess, total: int) -> None:
    """Wait until what was acked is sealed as well, or the writer is dead, or has said what failed."""
    wait_until(
        lambda: not writer.is_alive or len(house.sealed_files()) >= total or '"level":"error"' in writer.stderr(),
        "the seal",
    )


def cases_of(life: Life, directory: Path) -> list[Case]:
    """Each call of a life that nothing touches."""
    directory.mkdir()
    log = directory / "strace"
    for turn in ("to fill Python's caches", "to look at"):
        with writer_house(directory / turn) as house:
            house.data_dir.parent.mkdir()
            life(house, Worker(house), ["-o", str(log), "-e", f"trace={CALLS},{_STARTED}"])
    names = re.findall(r"^[0-9]+ +([a-z0-9]+)\(", log.read_text(), re.MULTILINE)
    start = names.index(_STARTED)
    seen = Counter[str]()
    cases = []
    for position, name in enumerate(names):
        seen[name] += 1
        if position > start:
            cases.append(Case(name, seen[name]))
    return cases


def finish(house: WriterHouse, worker: Worker, *, is_resent: bool) -> None:
    """The next writer, which nothing touches, finishes all; the one after it has nothing to do."""
    writer = house.start().wait_for("recovered")
    if is_resent:
        worker.resend(writer)
    worker.hang_up()
    assert writer.drain() == 0, writer.stderr()
    worker.audit()
    before = {path: path.read_bytes() for path in house.sealed_files()}
    assert house.start().wait_for("recovered").drain() == 0
    assert {path: path.read_bytes() for path in house.sealed_files()} == before
    assert house.open_files() == []
