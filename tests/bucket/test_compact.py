"""Compaction: few large objects with every line once; interrupted anywhere, each line is there at least once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import zstandard

from netwatch.bucket import Bucket
from netwatch.cli import main
from netwatch.storage import merging
from netwatch.storage.frame import FrameReader
from tests.bucket.conftest import LINES, MakeData
from tests.bucket.gateway import Fault, Forward, Gateway, Request, stores_and_says
from tests.bucket.shipping import local, ship
from tests.bucket.store import environment, objects, paths
from tests.doubles import sealed_lines
from tests.system.server import NETWATCH, wait_until

NOW: Final = ("--grace-s", "0", "--since", "2026-11-01", "--lease-s", "5")
SAMPLE: Final = 8


def flags(bucket: Bucket, *more: str, endpoint: str | None = None) -> list[str]:
    there = endpoint or bucket.endpoint
    assert there
    return ["compact", "--bucket", str(bucket), "--endpoint", there, *NOW, *more]


def compact(bucket: Bucket, *more: str, endpoint: str | None = None) -> int:
    return main(flags(bucket, *more, endpoint=endpoint))


def plain_lines(content: bytes) -> list[bytes]:
    return zstandard.ZstdDecompressor().decompressobj().decompress(content).splitlines()


def lines_of(content: bytes) -> list[bytes]:
    """The lines of an object, which must be one whole frame; the `zstd` tool must say so too."""
    fd = merging.held(content)
    try:
        merging.ids_of(fd)
        found = list(FrameReader(fd).lines())
    finally:
        os.close(fd)
    done = subprocess.run(["zstd", "-dc"], input=content, capture_output=True, check=True)
    assert done.stdout.splitlines() == found
    return found


def stored(bucket: Bucket) -> Counter[bytes]:
    """How often each line stands in the bucket."""
    return Counter(
        line for path, content in objects(bucket).items() if path.startswith("date=") for line in lines_of(content)
    )


@pytest.fixture
def hosts(make_data: MakeData, bucket: Bucket) -> list[Path]:
    """Three hosts that have shipped two hours: three files of the first from each, and two of the second."""
    made = []
    for number in range(3):
        data = make_data(3, f"host{number}", first=100 * number, received_at="2026-11-22T10:24:10.123456Z")
        make_data(2, f"host{number}", first=100 * number + 50, received_at="2026-11-22T11:24:10.123456Z")
        assert ship(data, bucket) == 0
        made.append(data)
    return made


def all_lines(hosts: list[Path]) -> Counter[bytes]:
    return Counter(line.rstrip(b"\n") for data in hosts for line in sealed_lines(data))


def test_an_hour_becomes_one_object_with_the_same_lines(
    hosts: list[Path], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(list(paths(bucket))) == 15
    assert compact(bucket) == 0
    assert "15 objects of " in capsys.readouterr().out
    left = [path for path in paths(bucket) if path.startswith("date=")]
    assert [path[:61] for path in sorted(left)] == [
        "date=2026-11-22/reports-2026-11-22T10-24-10.123Z--2026-11-22T",
        "date=2026-11-22/reports-2026-11-22T11-24-10.123Z--2026-11-22T",
    ]
    assert stored(bucket) == all_lines(hosts)
    assert max(stored(bucket).values()) == 1
    assert compact(bucket) == 0
    assert "Nothing to compact: no hour since 20" in capsys.readouterr().out
    assert sorted(path for path in paths(bucket) if path.startswith("date=")) == sorted(left)


def test_a_dry_run_says_so_and_does_nothing(
    hosts: list[Path], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    before = objects(bucket)
    assert compact(bucket, "--dry-run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["9", "6"]
    assert objects(bucket) == before


def test_large_ones_end_at_the_size(hosts: list[Path], bucket: Bucket) -> None:
    size_bytes = sum(map(len, objects(bucket).values())) // 15
    assert compact(bucket, "--target-bytes", str(3 * size_bytes - 100)) == 0
    assert len([path for path in paths(bucket) if path.startswith("date=")]) == 5
    assert stored(bucket) == all_lines(hosts)


def test_an_hour_that_is_not_over_stays(make_data: MakeData, bucket: Bucket) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    assert ship(make_data(3, received_at=now), bucket) == 0
    assert compact(bucket, "--settle-s", "0") == 0
    assert len([path for path in paths(bucket) if path.startswith("date=")]) == 3


def test_a_line_that_two_hosts_have_stored_is_there_once_then(make_data: MakeData, bucket: Bucket) -> None:
    """A client sent it to both under one key."""
    one, two = make_data(2, "one"), make_data(3, "two")
    assert ship(one, bucket) == ship(two, bucket) == 0
    assert max(stored(bucket).values()) == 2
    assert compact(bucket) == 0
    assert stored(bucket) == all_lines([two])


def test_what_comes_late_or_again_joins_what_is_compacted(
    hosts: list[Path], make_data: MakeData, bucket: Bucket
) -> None:
    assert compact(bucket) == 0
    late = make_data(1, "late", first=900, received_at="2026-11-22T10:24:10.123456Z")
    assert ship(late, bucket) == 0
    assert ship(hosts[0], bucket, "--again") == 0  # a restored host, whose marks are lost
    assert max(stored(bucket).values()) == 2
    assert compact(bucket) == 0
    assert len([path for path in paths(bucket) if path.startswith("date=")]) == 2
    assert stored(bucket) == all_lines([*hosts, late])


def test_a_damaged_object_stays_and_is_told(
    hosts: list[Path], bucket: Bucket, capfd: pytest.CaptureFixture[str]
) -> None:
    path, content = next(iter(local(hosts[0]).items()))
    damaged = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    bucket.open().put(path, damaged)
    other = f"{path.partition('/')[0]}/notes.txt"
    bucket.open().put(other, b"not ours")
    assert compact(bucket) == 1
    assert '"event":"compact_damaged"' in capfd.readouterr().err
    left = objects(bucket)
    assert left.pop(path) == damaged
    assert left.pop(other) == b"not ours"
    found = Counter(line for there, content in left.items() if there.startswith("date=") for line in lines_of(content))
    assert sum(found.values()) == 14 * LINES
    assert compact(bucket) == 1
    assert objects(bucket)[path] == damaged


def test_only_one_works_at_a_time(hosts: list[Path], bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([NETWATCH, *flags(bucket, "--grace-s", "30")], env=environment()) as first:
        wait_until(lambda: any("Z--" in path for path in paths(bucket)), 20)
        assert compact(bucket) == 1
        assert "Another compactor has the lease" in capsys.readouterr().out
        first.send_signal(signal.SIGSTOP)
        time.sleep(6)  # its lease is over, and it does not know
        assert compact(bucket) == 0
        first.send_signal(signal.SIGCONT)
        assert first.wait(10) == 1
    assert stored(bucket) == all_lines(hosts)


def test_the_small_ones_stay_beside_the_large_one_for_the_grace(hosts: list[Path], bucket: Bucket) -> None:
    with subprocess.Popen([NETWATCH, *flags(bucket, "--grace-s", "4")], env=environment()) as process:
        wait_until(lambda: sum("Z--" in path for path in paths(bucket)) == 2, 20)
        assert len([path for path in paths(bucket) if path.startswith("date=")]) == 17
        assert process.wait(20) == 0
    assert stored(bucket) == all_lines(hosts)


def test_who_reads_meanwhile_sees_every_line(hosts: list[Path], bucket: Bucket) -> None:
    """A reader lists first and reads then, as query engines do."""
    expected = set(all_lines(hosts))
    missing: list[int] = []
    reads = 0
    is_over = threading.Event()

    def read() -> None:
        nonlocal reads
        while not is_over.is_set():
            try:
                found = objects(bucket)
            except FileNotFoundError:  # slower than the grace: it knows that it has not seen all
                continue
            contents = [content for path, content in found.items() if path.startswith("date=")]
            missing.append(len(expected.difference(*map(plain_lines, contents))))
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert compact(bucket, "--grace-s", "3") == 0
    finally:
        is_over.set()
        reader.join()
    assert reads > 2
    assert set(missing) == {0}


def compact_until_killed(bucket: Bucket, door: Gateway, at: int, *, is_after: bool) -> None:
    """Kill a compactor at its ``at``th request, before or after the store has it."""
    started = threading.Event()
    door.plan("*", kills(lambda: process.pid if started.wait(10) else 0, at, is_after=is_after), times=10_000)
    command = [NETWATCH, *flags(bucket, "--lease-s", "0.2", endpoint=door.endpoint)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        started.set()
        assert process.wait(30) == -signal.SIGKILL
    door.forget()


def kills(pid: Callable[[], int], at: int, *, is_after: bool) -> Fault:
    """A gateway's fault that kills the process at its ``at``th request, before or after the store has it."""
    count = 0

    def fault(request: Request, forward: Forward) -> bytes:
        nonlocal count
        count += 1
        if count == at and not is_after:
            os.kill(pid(), signal.SIGKILL)
            return b""
        answer = forward(request)
        if count == at:
            os.kill(pid(), signal.SIGKILL)
        return answer

    return fault


def test_killed_at_any_request_each_line_is_there_and_the_next_one_finishes(
    make_data: MakeData, bucket: Bucket, door: Gateway, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    data = make_data(3)

    def prepared(name: str) -> Bucket:
        own = Bucket(**{**vars(bucket), "prefix": f"{bucket.prefix}/{name}"})
        there = own.open()
        for path, content in local(data).items():
            there.put(path, content)
        return own

    assert compact(prepared("untouched"), endpoint=door.endpoint) == 0
    total = len(door.requests)
    cases = [(at, is_after) for at in range(1, total + 1) for is_after in (False, True)]
    puts = [(at, False) for at, method in enumerate(door.requests, 1) if method == "PUT"]  # what it is all about
    chosen = cases if full_sweeps else sorted({*puts, *cases[:: -(-len(cases) // SAMPLE)]})
    thinned(len(cases), len(chosen), "requests at which a compactor is killed")
    expected = all_lines([data])
    for at, is_after in chosen:
        own = prepared(f"{at}-{is_after}")
        compact_until_killed(own, door, at, is_after=is_after)
        assert set(stored(own)) == set(expected), (at, is_after)
        assert wait_until(lambda own=own: compact(own) == 0, 10), (at, is_after)  # type: ignore[misc]
        assert stored(own) == expected, (at, is_after)
        assert len([path for path in paths(own) if path.startswith("date=")]) == 1, (at, is_after)


def test_answers_that_are_lost_do_no_harm(hosts: list[Path], bucket: Bucket, door: Gateway) -> None:
    lost = stores_and_says("500 Internal Server Error", "InternalError")
    for method in ("PUT", "PUT", "DELETE", "POST"):
        door.plan(method, lost)
    wait_until(lambda: compact(bucket, endpoint=door.endpoint) == 0, 20)
    assert stored(bucket) == all_lines(hosts)
