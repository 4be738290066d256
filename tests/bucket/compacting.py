"""`netwatch compact` again and again while hosts ship, some killed: ``python -m tests.bucket.compacting FLAGS`` is one.

Such a compactor takes the hour that runs for one that is over. So what comes late, which is rare elsewhere, comes all
the time: each run meets objects that lie within the times of what the one before has made.
"""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from netwatch import cli
from netwatch.bucket import Bucket
from netwatch.compaction import plan
from tests.bucket.cluster import Storm
from tests.bucket.store import environment
from tests.system.server import ROOT

_AHEAD_S: Final = 4 * 3600.0
_FLAGS: Final = ("--since", "1d", "--lease-s", "3")
_RUN_S: Final = 120.0
SMALL: Final = ("--target-bytes", "2MiB")


def main(flags: list[str]) -> int:
    """Compact once, with the plan's clock ahead."""
    groups = plan.groups

    @functools.wraps(groups)
    def early(objects: object, now_s: float, *rest: object) -> object:
        return groups(objects, now_s + _AHEAD_S, *rest)  # type: ignore[arg-type]

    plan.groups = early  # type: ignore[assignment]
    return cli.main(["compact", *flags])


def start(bucket: Bucket, log: Path, *more: str) -> subprocess.Popen[bytes]:
    """A compactor's process."""
    assert bucket.endpoint
    where = ["--bucket", str(bucket), "--endpoint", bucket.endpoint]
    command = [sys.executable, "-m", "tests.bucket.compacting", *where, *_FLAGS, *more]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)


def compact_all(bucket: Bucket, log: Path, timeout_s: float) -> None:
    """Compact until nothing is left to do; a lease that a killed one has left must end first."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        began_at = log.stat().st_size
        code = start(bucket, log, "--grace-s", "0").wait(timeout_s)
        said = log.read_bytes()[began_at:].decode()
        if code == 0 and said.startswith("Nothing to compact"):
            return
        assert time.monotonic() < deadline_s, said
        time.sleep(1.0)


class Compactors(Storm):
    """One compactor after the other, at either gateway (``bucket``); half of them are killed if they take long."""

    def __init__(self, bucket: Callable[[int], Bucket], log: Path, seed: int) -> None:
        super().__init__()
        self.ends = Counter[str]()
        """How many were ``done``, ``failed`` or ``killed``."""
        self._bucket = bucket
        self._log = log
        self._random = Random(seed)
        log.touch()

    def _run(self) -> None:
        while not self._over.wait(self._random.uniform(0, 4)):
            grace_s = self._random.uniform(0, 8)
            process = start(self._bucket(self._random.randrange(2)), self._log, "--grace-s", f"{grace_s:.1f}", *SMALL)
            is_spared = self._random.random() < 0.5
            try:
                code = process.wait(_RUN_S if is_spared else self._random.uniform(0.3, grace_s + 1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.ends["killed"] += 1
            else:
                self.ends["failed" if code else "done"] += 1

    def made(self) -> tuple[int, int]:
        """How many objects they have made, and of how many."""
        sources = re.findall(r'"event":"compacted".*?"sources":(\d+)', self._log.read_text())
        return len(sources), sum(map(int, sources))

    def wrong(self) -> list[str]:
        """What they say of objects that are not as they were written."""
        return re.findall(r'.*"event":"compact_(?:damaged|failed)".*', self._log.read_text())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
