"""Three hosts ship into one bucket of a cluster, which is compacted and queried, while processes of all are killed.

The audit reads the bucket alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import pytest

from netwatch.bucket import Bucket
from netwatch.loadtest.audit import audit
from netwatch.loadtest.ledger import Fate
from netwatch.reports import ID
from netwatch.storage import layout
from tests.bucket import host
from tests.bucket.cluster import Cluster, NodeStorm, Storm
from tests.bucket.compacting import Compactors, compact_all
from tests.bucket.shipping import Shipping
from tests.bucket.store import environment, paths
from tests.bucket.test_compact import plain_lines
from tests.doubles import sealed_lines
from tests.system.server import NETWATCH, ROOT

HOSTS: Final = 3
DURATION_S: Final = 300.0
SHIPPED_S: Final = 300.0
"""After the last seal, and the last kill."""
QUERY_EVERY_S: Final = 15.0


class Shippers(Storm):
    """A shipper for each host, killed now and then, and started again as systemd would."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        super().__init__()
        self.kills = 0
        self._cluster = cluster
        self._directory = directory
        self._running = [self._start(number) for number in range(HOSTS)]

    def _start(self, number: int) -> Shipping:
        directory = self._directory / f"host{number}"
        bucket = self._cluster.bucket(number % 2, "all")
        return Shipping(directory / "data", bucket, directory / "ship.log", "--timeout-s", "10")

    def __exit__(self, *_: object) -> None:
        self.end()
        for shipping in self._running:
            assert shipping.stop() == 0

    def _run(self) -> None:
        random = Random(6)
        while not self._over.wait(7):
            number = random.randrange(HOSTS)
            assert self._running[number].stop(signal.SIGKILL) == -signal.SIGKILL
            self.kills += 1
            self._running[number] = self._start(number)

    def settle(self) -> float:
        """Kill no more; how long it took until nothing waits."""
        self.end()
        began_s = time.monotonic()
        until_s = began_s + SHIPPED_S
        while not self._is_all_marked():  # the metric says only what the last look found
            assert time.monotonic() < until_s
            time.sleep(0.1)
        return time.monotonic() - began_s

    def _is_all_marked(self) -> bool:
        sealed = self._directory.glob("host*/data/reports/date=*/*")
        return all("user.netwatch.shipped" in os.listxattr(path) for path in sealed)


class Queries:
    """How many reports the bucket has, asked while it changes."""

    def __init__(self, bucket: Bucket) -> None:
        self.counts: list[int] = []
        self.failures = Counter[str]()
        self._bucket = bucket

    def ask(self) -> None:
        assert self._bucket.endpoint
        where = ["--bucket", str(self._bucket), "--endpoint", self._bucket.endpoint, "--region", "us-east-1"]
        command = [NETWATCH, "query", "SELECT count(*) FROM reports", *where, "--format", "csv"]
        done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
        if done.returncode:
            said = done.stderr.decode().rstrip().rpartition("\n")[2]
            self.failures[re.sub(r"\S*\d\S*", "…", said)] += 1
        else:
            self.counts.append(int(done.stdout.split()[1]))

    def falls(self) -> list[tuple[int, int]]:
        """Answers that had fewer reports than the one before: lines that a reader did not see."""
        return [(before, after) for before, after in pairwise(self.counts) if after < before]


def run(directory: Path, duration_s: float) -> str:
    """The whole run; what it came to. Raises AssertionError."""
    cluster = Cluster(directory / "cluster")
    hosts: list[subprocess.Popen[bytes]] = []
    try:
        cluster.start()
        for number in range(HOSTS):
            for name in ("open", "reports", "quarantine"):
                (directory / f"host{number}/data" / name).mkdir(parents=True)
        queries = Queries(cluster.bucket(0, "all"))
        compactors = Compactors(lambda gateway: cluster.bucket(gateway, "all"), directory / "compact.log", 6)
        with NodeStorm(cluster, 10.0, 6) as nodes, Shippers(cluster, directory) as shippers:
            with compactors:
                for number in range(HOSTS):
                    own = directory / f"host{number}"
                    arguments = [own / "data", own / "ledger", number, duration_s]
                    command = [sys.executable, "-m", "tests.bucket.host", *map(str, arguments)]
                    hosts.append(subprocess.Popen(command, cwd=ROOT))
                until_s = time.monotonic() + duration_s
                while time.monotonic() < until_s:
                    time.sleep(min(QUERY_EVERY_S, max(until_s - time.monotonic(), 0.0)))
                    queries.ask()
                codes = [process.wait(120) for process in hosts]
            nodes.end()
            settled_s = shippers.settle()
        assert codes == [0] * HOSTS
        assert queries.counts
        assert queries.falls() == []
        assert compactors.wrong() == []
        made, sources = compactors.made()
        said = [
            f"killed: {sum(nodes.kills.values())} store nodes ({dict(nodes.kills)}), {shippers.kills} shippers",
            f"compactors: {dict(compactors.ends)}, {made} objects of {sources}",
            f"{len(queries.counts)} queries answered meanwhile, and not: {dict(queries.failures)}",
            f"all shipped {settled_s:.0f} s after the end",
            "then: " + audited(cluster, directory, is_compacted=False),
        ]
        compact_all(cluster.bucket(0, "all"), directory / "compact.log", SHIPPED_S)
        return "; ".join([*said, "compacted once more: " + audited(cluster, directory, is_compacted=True)])
    finally:
        for process in hosts:
            process.kill()
        cluster.kill()


def audited(cluster: Cluster, directory: Path, *, is_compacted: bool) -> str:
    """Compare the bucket, as each gateway shows it, with what the clients were told, and with the hosts' files.

    Each line must be there at least once through both, and once through the one by which it was compacted last. The
    gateways may differ in what was deleted: each has its list of the objects in a store of its own, and what it noted
    just before a SIGKILL may never reach the other one.
    """
    said = []
    for number in range(2):
        seen = seen_through(cluster.bucket(number, "all"), directory, is_once=is_compacted and number == 0)
        said.append(f"gateway {number}: {seen}")
    return "; ".join(said)


def seen_through(bucket: Bucket, directory: Path, *, is_once: bool) -> str:
    """The same of one gateway."""
    contents, listed_only = readable(bucket)
    copy = Path(tempfile.mkdtemp(dir=directory))
    for path, content in contents.items():
        if not layout.sealed_segment(path.rpartition("/")[2]):  # it was compacted; the audit knows only a host's names
            path = path.replace(".jsonl.zst", "-0.jsonl.zst")
        target = copy / "reports" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    acked = lines = repeated = killed = 0
    ids = Counter(line[ID] for content in contents.values() for line in plain_lines(content))
    for number in range(HOSTS):
        own = directory / f"host{number}"
        ledger, reports, kills = host.read(own / "ledger")
        result = audit(copy, ledger, reports, keys_forgotten=True)
        assert result.failures() == []
        acked += sum(fates.count(Fate.ACKED) for fates in ledger.fates)
        lines, repeated, killed = result.lines, repeated + result.repeated, killed + sum(kills.values())
        assert {line[ID] for line in sealed_lines(own / "data")} <= ids.keys()
    if is_once and len(contents) == 1:  # else a report may stand in two hours, when its server had forgotten it
        assert set(ids.values()) == {1}
    return (
        f"{acked} reports acknowledged, {lines} lines in {len(contents)} objects of "
        f"{sum(map(len, contents.values())) / 1e6:.1f} MB, {repeated} of them twice under one id, "
        f"{listed_only} objects listed that are not there; killed: {killed} processes of the hosts"
    )


def readable(bucket: Bucket) -> tuple[dict[str, bytes], int]:
    """The objects with reports, and how many more the store lists and does not have."""
    store, found, listed_only = bucket.open(), dict[str, bytes](), 0
    for path in paths(bucket):
        if path.startswith("date="):
            try:
                found[path] = bytes(store.get(path).bytes())
            except FileNotFoundError:
                listed_only += 1
    return found, listed_only


@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 2 * SHIPPED_S + 300)
def test_every_acknowledged_report_is_in_the_bucket_once(tmp_path: Path) -> None:
    print(run(tmp_path, DURATION_S))
