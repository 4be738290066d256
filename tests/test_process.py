from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch import process

FOLLOW = """
import os, signal, sys
from netwatch import process
def on_term(*_):
    os.write(1, b"told\\n")
    os._exit(7)
signal.signal(signal.SIGTERM, on_term)
parent = os.getpid()
child = os.fork()
if child == 0:
    process.follow({parent})
    os.write(1, b"follows %d\\n" % os.getpid())
    signal.pause()
os.write(1, b"parent %d\\n" % parent)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pause()
"""


class Family:
    """A parent that a child follows; they say what they do."""

    def __init__(self, parent: str = "parent") -> None:
        program = FOLLOW.format(parent=parent)
        self.process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert self.process.stdout
        self.said = self.process.stdout.fileno()
        self._text = ""

    def wait_for(self, word: str, timeout_s: float = 10) -> str:
        deadline_s = time.monotonic() + timeout_s
        while word not in self._text:
            ready, _, _ = select.select([self.said], [], [], max(deadline_s - time.monotonic(), 0))
            assert ready, f"{word!r} did not come, only {self._text!r}"
            data = os.read(self.said, 4096)
            assert data, f"{word!r} did not come, only {self._text!r}"
            self._text += data.decode()
        return self._text


@pytest.fixture
def families() -> Iterator[list[Family]]:
    made: list[Family] = []
    yield made
    for family in made:
        family.process.kill()
        family.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_is_told_when_its_parent_dies(number: int, families: list[Family]) -> None:
    families.append(family := Family())
    family.wait_for("follows")
    family.process.send_signal(number)
    family.wait_for("told")


def test_a_parent_that_is_dead_already_is_not_missed(families: list[Family]) -> None:
    families.append(family := Family(parent="parent + 1"))
    assert "follows" not in family.wait_for("told")


def test_the_title_is_what_an_operator_sees() -> None:
    program = "from netwatch import process; process.set_title('writer'); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        cmdline = Path(f"/proc/{child.pid}/cmdline")
        deadline_s = time.monotonic() + 10
        while cmdline.read_bytes().rstrip(b"\0 ") != b"netwatch: writer":
            assert time.monotonic() < deadline_s, cmdline.read_bytes()
            time.sleep(0.01)
        child.communicate(b"\n")


def test_a_kernel_that_refuses_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PR_SET_PDEATHSIG", -1)
    with pytest.raises(OSError, match="Invalid argument"):
        process.follow(os.getppid())


def test_who_is_killed_first_when_memory_is_out() -> None:
    program = "from netwatch import process; process.be_killed_first(); print(open('/proc/self/oom_score_adj').read())"
    before = int(Path("/proc/self/oom_score_adj").read_text())
    after = int(subprocess.check_output([sys.executable, "-c", program]))
    assert after == min(before + 500, 1000)
