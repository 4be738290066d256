"""A real cluster: three masters, three volume servers that keep each object twice, two filers with S3 gateways."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final, Self

from netwatch.bucket import Bucket
from tests.bucket.store import IDENTITIES, KEYS, NAME, WEED
from tests.system.server import free_port, wait_until

_START_S: Final = 60.0
_DOWN_S: Final = 2.0
"""How long a killed node is away."""


class Node:
    """One process, through all its lives."""

    def __init__(self, directory: Path, name: str, command: list[str]) -> None:
        self.name = name
        self.http, self.grpc = _pair()
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http}.{self.grpc}"

    def start(self, *more: str) -> None:
        if more:
            self._command += more
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-port={self.http}", f"-port.grpc={self.grpc}"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [WEED, f"-logdir={self.directory}", *self._command, *flags],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def ask(self, path: str, method: str = "GET") -> bytes | None:
        """What it answers; None if it does not."""
        url = f"http://127.0.0.1:{self.http}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
                content: bytes = answer.read()
                return content
        except (OSError, urllib.error.URLError):
            return None


class Cluster:
    """All nodes, below ``directory``."""

    def __init__(self, directory: Path) -> None:
        config = directory / "s3.json"
        directory.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(IDENTITIES))
        master = ["master", "-mdir=.", "-telemetry=false", "-defaultReplication=001", "-volumeSizeLimitMB=64"]
        self.masters = [Node(directory, f"master{n}", list(master)) for n in range(3)]
        self.volumes = [Node(directory, f"volume{n}", ["volume", "-dir=.", "-max=30"]) for n in range(3)]
        self.s3_ports = [(free_port(), free_port()) for _ in range(2)]
        self.filers = [
            Node(
                directory,
                f"filer{n}",
                [
                    *("filer", "-defaultStoreDir=.", "-defaultReplicaPlacement=001", "-localSocket=filer.sock"),
                    *("-s3", f"-s3.port={http}", f"-s3.port.grpc={grpc}", f"-s3.config={config}"),
                    *(
                        "-s3.port.iceberg=0",
                        "-s3.port.lance=0",
                        "-s3.localSocket=s3.sock",
                        "-s3.autoCreateBucket=false",
                    ),
                ],
            )
            for n, (http, grpc) in enumerate(self.s3_ports)
        ]

    @property
    def nodes(self) -> list[Node]:
        return [*self.masters, *self.volumes, *self.filers]

    def start(self) -> Cluster:
        """Run it until both gateways have the bucket."""
        peers = ",".join(master.address for master in self.masters)
        for master in self.masters:
            master.start(f"-peers={peers}")
        assert wait_until(self.leader, _START_S, 0.2), "no master leads"
        for volume in self.volumes:
            volume.start(f"-master={peers}")
        for filer, (port, _) in zip(self.filers, self.s3_ports, strict=True):  # one after the other
            filer.start(f"-master={peers}")
            assert wait_until(lambda port=port: _listens(port), _START_S, 0.2), filer.name  # type: ignore[misc]
        assert self.filers[0].ask(f"/buckets/{NAME}/", "POST") is not None
        for number in range(2):
            assert wait_until(lambda number=number: self._has_bucket(number), _START_S, 0.5), f"gateway {number}"  # type: ignore[misc]
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def leader(self) -> Node | None:
        """The master that leads."""
        for master in self.masters:
            status = json.loads(master.ask("/cluster/status") or b"{}")
            if status.get("IsLeader"):
                return master
        return None

    def bucket(self, gateway: int, prefix: str = "") -> Bucket:
        endpoint = f"http://127.0.0.1:{self.s3_ports[gateway][0]}"
        return Bucket(name=NAME, prefix=prefix, endpoint=endpoint, region="us-east-1", keys=KEYS)

    def _has_bucket(self, gateway: int) -> bool:
        """Whether something can be put there and is read back."""
        store = self.bucket(gateway).open(retries=0, timeout_s=5)
        try:
            store.put(f"proof/{gateway}", b"proof")
            return bytes(store.get(f"proof/{gateway}").bytes()) == b"proof"
        except Exception:
            return False


def _pair() -> tuple[int, int]:
    """Two ports, 10 000 apart: a filer's gateway knows no other for its gRPC."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port, port + 10_000


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Storm:
    """What is done again and again beside a ``with`` block, until its end or :meth:`end`."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        """Return soon after ``_over`` is set."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._over.set()
        self._thread.join()


class NodeStorm(Storm):
    """Kills a volume server, the leading master or a filer every so often, and starts it again."""

    def __init__(self, cluster: Cluster, every_s: float, seed: int) -> None:
        super().__init__()
        self.kills = Counter[str]()
        self._cluster = cluster
        self._every_s = every_s
        self._random = Random(seed)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            kind = self._random.choice(["volume", "master", "filer"])
            leader = self._cluster.leader() if kind == "master" else None
            nodes = {"volume": self._cluster.volumes, "filer": self._cluster.filers, "master": self._cluster.masters}
            node = leader or self._random.choice(nodes[kind])
            self.kills[kind] += 1
            node.kill()
            time.sleep(_DOWN_S)
            node.start()
