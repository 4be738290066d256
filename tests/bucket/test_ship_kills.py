"""SIGKILL of the shipper at its system calls: what is marked is in the bucket, and the next one finishes."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from netwatch.bucket import Bucket
from tests.bucket.conftest import MakeData
from tests.bucket.shipping import flags, local, marked, ship
from tests.bucket.store import environment, objects
from tests.system.server import NETWATCH

CALLS: Final = ("fsync", "connect", "writev", "sendto", "recvfrom", "fsetxattr")
"""What a shipper does to the disk and to the store, and how its threads talk to each other in between."""
SPREAD: Final = 4
"""In the short form, so many besides the first of each call, between which something may be marked too early."""


def traced(data: Path, bucket: Bucket, *strace: str) -> int:
    """Ship what waits, one after the other, under strace; the exit code, as strace passes it on."""
    command = [NETWATCH, *flags(data, bucket, "--once", "--parallel", "1")]
    done = subprocess.run(
        ["strace", "-f", "-qq", *strace, *command], env=environment(), capture_output=True, timeout=60
    )
    return done.returncode


def test_killed_at_any_call_it_lies_about_nothing_and_the_next_one_finishes(
    make_data: MakeData, bucket: Bucket, tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    log = tmp_path / "strace"
    assert traced(make_data(2, "untouched"), bucket, "-o", str(log), "-e", f"trace={','.join(CALLS)}") == 0
    seen = Counter(re.findall(r"^([0-9]+) +([a-z]+)\(", log.read_text(), re.MULTILINE))
    most = {name: max(count for (_, found), count in seen.items() if found == name) for name in CALLS}
    cases = [(name, number) for name, count in most.items() for number in range(1, count + 1)]
    sample = sorted({*cases[:: -(-len(cases) // SPREAD)], *((name, 1) for name in CALLS)})
    chosen = cases if full_sweeps else sample
    thinned(len(cases), len(chosen), "system calls at which a shipper is killed")
    killed = 0
    for position, (name, number) in enumerate(chosen):
        data = make_data(2, f"data-{position}")
        own = Bucket(**{**vars(bucket), "prefix": f"{bucket.prefix}/{position}"})
        code = traced(data, own, "-o", "/dev/null", f"--inject={name}:signal=KILL:when={number}")
        killed += code == -signal.SIGKILL
        there, here = objects(own), local(data)
        assert there.items() <= here.items(), (name, number)
        assert {path for path, found in marked(data).items() if found} <= there.keys(), (name, number)
        assert ship(data, own) == 0
        assert objects(own) == here
        assert set(marked(data).values()) == {str(own)}
    assert killed >= len(chosen) - 2, "threads share the calls out differently at each run, but not so differently"
