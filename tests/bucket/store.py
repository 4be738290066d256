"""A real store: one node of SeaweedFS with its S3 gateway, on free ports of 127.0.0.1, through all its lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from netwatch.bucket import Bucket
from tests.system.server import free_port, wait_until

WEED: Final = str(Path(sys.executable).with_name("weed"))
KEYS: Final = {"AWS_ACCESS_KEY_ID": "netwatch-tests", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
NAME: Final = "telemetry"
_START_S: Final = 30.0
_TRIES: Final = 3
IDENTITIES: Final = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
    ]
}
_PORTS: Final = ("master", "volume", "filer", "s3", "admin")


class Store:
    """`weed mini` below ``directory``, with the bucket ``telemetry``; ``flags`` are more of its own."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        self._flags = flags
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "s3.json").write_text(json.dumps(IDENTITIES))
        self._ports: dict[str, tuple[int, int]] = {}
        self._weed: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The S3 gateway's."""
        return self._ports["s3"][0]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Store:
        """Run it until it answers; again on the same ports, for who knew them before it was killed."""
        for _ in range(1 if self._ports else _TRIES):
            self._ports = self._ports or {name: (free_port(), free_port()) for name in _PORTS}
            if self._run():
                return self
            self.kill()
            self._ports = {}  # another test's store was faster
        raise AssertionError((self.directory / "weed.log").read_text()[-3000:])

    def _run(self) -> bool:
        ports = [f"-{name}.port={http}" for name, (http, _) in self._ports.items()]
        grpc = [f"-{name}.port.grpc={port}" for name, (_, port) in self._ports.items()]
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [
            *(WEED, f"-logdir={self.directory}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-master.telemetry=false", "-admin.ui=false", "-webdav=false", f"-bucket={NAME}", *ports, *grpc),
            *(f"-s3.config={self.directory / 's3.json'}", "-s3.autoCreateBucket=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=8", "-master.volumeSizeLimitMB=64"),
            *(f"-s3.localSocket={self.directory / 's3.sock'}", f"-filer.localSocket={self.directory / 'filer.sock'}"),
            *self._flags,
        ]
        with (self.directory / "weed.log").open("ab") as log:
            self._weed = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory, start_new_session=True)
        return wait_until(lambda: self._has_bucket() or not self._is_alive, _START_S) and self._is_alive

    def kill(self) -> None:
        """SIGKILL, as the machine's end would be."""
        if self._weed:
            self._weed.send_signal(signal.SIGKILL)
            self._weed.wait()
            self._weed = None

    def make_bucket(self, name: str) -> None:
        """What an operator does by other means: in SeaweedFS a directory of its filer is a bucket."""
        self._ask_filer("POST", name)

    def delete_bucket(self, name: str) -> None:
        """Delete it with all that is in it."""
        self._ask_filer("DELETE", name, "?recursive=true")

    def _ask_filer(self, method: str, name: str, query: str = "") -> None:
        url = f"http://127.0.0.1:{self._ports['filer'][0]}/buckets/{name}{query or '/'}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10):
            return

    @property
    def _is_alive(self) -> bool:
        return self._weed is not None and self._weed.poll() is None

    def _has_bucket(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            self.bucket().open(retries=0).put("proof", b"the first one takes long")
        except Exception:
            return False
        return True

    def bucket(self, prefix: str = "", *, name: str = NAME, endpoint: str | None = None) -> Bucket:
        return Bucket(name=name, prefix=prefix, endpoint=endpoint or self.endpoint, region="us-east-1", keys=KEYS)


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Everything below the bucket's prefix, by its path there."""
    store = bucket.open()
    return {path: bytes(store.get(path).bytes()) for path in sorted(paths(bucket))}


def paths(bucket: Bucket) -> Iterator[str]:
    """The path of each object below the bucket's prefix."""
    for found in bucket.open().list():
        yield from (item["path"] for item in found)


def environment(**changes: str) -> Mapping[str, str]:
    """What a shipper's process gets, with the store's keys."""
    return {**os.environ, **KEYS, **changes}
