"""A `netwatch serve` that clients post to, which seals so soon that what it stored can be read while it runs."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clients.certificate import Certificate
from tests.system.server import START_S, Server, report, wait_until

STORED_S = 10.0
_SEALS_SOON = ("--seal-after-s", "0.05", "--workers", "1")

Line = dict[str, Any]


class Collector(Server):
    """A server in a directory of its own; with a certificate it speaks HTTPS."""

    def __init__(self, directory: Path, *flags: str, certificate: Certificate | None = None) -> None:
        tls = certificate.flags if certificate else ()
        super().__init__(directory / "data", directory / "server.log", *_SEALS_SOON, *tls, *flags)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._markers = itertools.count()
        self.reports_url = f"{self.url}/api/v1/reports"

    def wait_for_line(self, timeout_s: float = START_S) -> None:
        until_s = time.monotonic() + timeout_s
        while not self.stdout.endswith(b"\n"):
            self._read_stdout(until_s - time.monotonic())
        self.line = self.stdout.decode()
        assert self.line == f"netwatch: listening on {self.url}, writing to {self.data_dir.absolute()}\n"
        self.processes()

    def wait_for(self, fits: Callable[[Line], bool]) -> list[Line]:
        """The stored lines that fit, once there are any."""
        found = wait_until(lambda: [line for line in self.stored() if fits(line)], STORED_S)
        assert found, self._summary()
        return found

    def wait_for_client(self, client: str, count: int = 1) -> list[Line]:
        """The stored lines of the reports with this `clientId`, once there are ``count``."""

        def look() -> list[Line]:
            found = [line for line in self.stored() if line["report"].get("clientId") == client]
            return found if len(found) >= count else []

        found = wait_until(look, STORED_S)
        assert len(found) == count, self._summary()
        return found

    def clients_after_marker(self, headers: dict[str, str] | None = None) -> list[str]:
        """The `clientId` of every report stored until now; a report of our own, stored last, marks the time."""
        marker = f"marker-{next(self._markers)}"
        assert self.post(report(marker), headers=headers).status == 200
        self.wait_for_client(marker)
        return [client for client in self.stored_clients() if not client.startswith("marker-")]

    def stored_clients(self) -> list[str]:
        return sorted(line["report"].get("clientId", line["kind"]) for line in self.stored())

    def _summary(self) -> dict[str, int]:
        """What is stored, for a test that misses something."""
        return dict(Counter(self.stored_clients()))
