"""`netwatch ship`, run as its operators do, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from netwatch.bucket import Bucket
from netwatch.cli import main
from netwatch.storage.files import Files
from netwatch.storage.shipped import bucket_of
from tests.bucket.store import environment
from tests.doubles import sealed_files
from tests.system.server import NETWATCH, free_port, wait_until

MARK = "user.netwatch.shipped"


def flags(data: Path, bucket: Bucket, *more: str, endpoint: str | None = None) -> list[str]:
    """Of a shipper."""
    there = endpoint or bucket.endpoint
    assert there
    return ["ship", "--data-dir", str(data), "--bucket", str(bucket), "--endpoint", there, *more]


def ship(data: Path, bucket: Bucket, *more: str, endpoint: str | None = None) -> int:
    """Ship what waits; the exit code."""
    return main(flags(data, bucket, "--once", "--timeout-s", "1", *more, endpoint=endpoint))


def local(data: Path) -> dict[str, bytes]:
    """The sealed files as they must stand in the bucket, by their paths there."""
    return {str(path.relative_to(data / "reports")): path.read_bytes() for path in sealed_files(data)}


def marked(data: Path) -> dict[str, str | None]:
    """To which bucket each sealed file was shipped."""
    root = os.open(data, os.O_RDONLY)
    try:
        paths = [str(path.relative_to(data)) for path in sealed_files(data)]
        return {path.removeprefix("reports/"): bucket_of(Files(root), path) for path in paths}
    finally:
        os.close(root)


def unmark(data: Path) -> None:
    """Take all marks away, as a copy or a restored backup does."""
    for path in sealed_files(data):
        os.removexattr(path, MARK)


class Shipping:
    """A shipper's process that goes on until it is stopped."""

    def __init__(
        self,
        data: Path,
        bucket: Bucket,
        log: Path,
        *more: str,
        endpoint: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self._log = log
        command = [NETWATCH, *flags(data, bucket, "--metrics-bind", f"127.0.0.1:{self.port}", *more, endpoint=endpoint)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stderr=file, env=environ or environment(), start_new_session=True)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def metrics(self) -> dict[str, float]:
        """What it counts, by the name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(r"^netwatch_ship_(\S+) (\S+)$", text, re.MULTILINE)}

    def wait_for(self, look: Callable[[dict[str, float]], bool], timeout_s: float = 20.0) -> dict[str, float]:
        """The metrics once ``look`` is satisfied with them."""

        def seen() -> dict[str, float]:
            assert self.process.poll() is None, self.log
            try:
                found = self.metrics()
            except OSError:
                return {}
            return found if look(found) else {}

        found = wait_until(seen, timeout_s)
        assert found, self.log
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(10)
