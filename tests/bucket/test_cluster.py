"""Three hosts ship into one bucket of a cluster, while processes of both are killed: an audit from the bucket alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import pytest

from netwatch.bucket import Bucket
from netwatch.loadtest.audit import audit
from netwatch.loadtest.ledger import Fate
from tests.bucket import host
from tests.bucket.cluster import Cluster, NodeStorm
from tests.bucket.shipping import Shipping, local
from tests.bucket.store import environment, objects
from tests.system.server import NETWATCH, ROOT

HOSTS: Final = 3
DURATION_S: Final = 300.0
SHIPPED_S: Final = 300.0
"""After the last seal, and the last kill."""


class Shippers:
    """A shipper for each host, killed now and then, and started again as systemd would."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.kills = 0
        self._cluster = cluster
        self._directory = directory
        self._running = [self._start(number) for number in range(HOSTS)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def _start(self, number: int) -> Shipping:
        directory = self._directory / f"host{number}"
        bucket = self._cluster.bucket(number % 2, "all")
        return Shipping(directory / "data", bucket, directory / "ship.log", "--timeout-s", "10")

    def __enter__(self) -> Shippers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for shipping in self._running:
            assert shipping.stop() == 0

    def _kill(self) -> None:
        random = Random(6)
        while not self._over.wait(7):
            number = random.randrange(HOSTS)
            assert self._running[number].stop(signal.SIGKILL) == -signal.SIGKILL
            self.kills += 1
            self._running[number] = self._start(number)

    def settle(self) -> float:
        """Kill no more; how long it took until nothing waits."""
        self._over.set()
        self._thread.join()
        began_s = time.monotonic()
        for shipping in self._running:
            shipping.wait_for(lambda found: found["waiting_segments"] == 0, SHIPPED_S)
        return time.monotonic() - began_s


def count(bucket: Bucket, written: Counter[int]) -> None:
    """Ask it while it changes."""
    assert bucket.endpoint
    where = ["--bucket", str(bucket), "--endpoint", bucket.endpoint, "--region", "us-east-1"]
    command = [NETWATCH, "query", "SELECT count(*) FROM reports", *where, "--format", "csv"]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
    written[done.returncode] += 1


def run(directory: Path, duration_s: float) -> str:
    """The whole run; what it came to. Raises AssertionError."""
    cluster = Cluster(directory / "cluster")
    queries = Counter[int]()
    hosts: list[subprocess.Popen[bytes]] = []
    try:
        cluster.start()
        for number in range(HOSTS):
            for name in ("open", "reports", "quarantine"):
                (directory / f"host{number}/data" / name).mkdir(parents=True)
        with NodeStorm(cluster, 10.0, 6) as nodes, Shippers(cluster, directory) as shippers:
            for number in range(HOSTS):
                own = directory / f"host{number}"
                arguments = [own / "data", own / "ledger", number, duration_s]
                command = [sys.executable, "-m", "tests.bucket.host", *map(str, arguments)]
                hosts.append(subprocess.Popen(command, cwd=ROOT))
            until_s = time.monotonic() + duration_s
            while time.monotonic() < until_s:
                time.sleep(min(30.0, max(until_s - time.monotonic(), 0.0)))
                count(cluster.bucket(0, "all"), queries)
            codes = [process.wait(120) for process in hosts]
            nodes.__exit__()
            settled_s = shippers.settle()
        assert codes == [0] * HOSTS
        return audited(cluster, directory) + (
            f"; killed: {sum(nodes.kills.values())} store nodes ({dict(nodes.kills)}), {shippers.kills} shippers; "
            f"{queries[0]} of {queries.total()} queries answered meanwhile; all shipped {settled_s:.0f} s after the end"
        )
    finally:
        for process in hosts:
            process.kill()
        cluster.kill()


def audited(cluster: Cluster, directory: Path) -> str:
    """Compare the bucket, seen through each gateway, with what the clients were told."""
    seen = [objects(cluster.bucket(number, "all")) for number in range(2)]
    assert seen[0] == seen[1]
    for path, content in seen[0].items():
        target = directory / "bucket/reports" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    acked = lines = repeated = killed = 0
    for number in range(HOSTS):
        ledger, reports, kills = host.read(directory / f"host{number}/ledger")
        result = audit(directory / "bucket", ledger, reports, keys_forgotten=True)
        assert result.failures() == []
        acked += sum(fates.count(Fate.ACKED) for fates in ledger.fates)
        lines, repeated, killed = result.lines, repeated + result.repeated, killed + sum(kills.values())
        assert local(directory / f"host{number}/data").items() <= seen[0].items()
    return (
        f"{acked} reports acknowledged, {lines} lines in {len(seen[0])} objects of "
        f"{sum(map(len, seen[0].values())) / 1e6:.1f} MB, {repeated} of them twice under one id; "
        f"killed: {killed} processes of the hosts"
    )


@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + SHIPPED_S + 300)
def test_every_acknowledged_report_is_in_the_bucket_once(tmp_path: Path) -> None:
    print(run(tmp_path, DURATION_S))
