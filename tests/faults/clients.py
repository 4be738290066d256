"""Clients that post all the time and write down every answer, and the audit of what the server made of it."""

from __future__ import annotations

import http.client
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from tests.system.server import GIVE_UP_S, Server, report, wait_until

ANSWER_S: Final = 10.0


class Clients:
    """``total`` clients, each on a keep-alive connection, between `with` and its end. What it counts may be read."""

    def __init__(self, *servers: Server, total: int = 4, padding_bytes: int = 0, pause_s: float = 0.005) -> None:
        self.acked: list[str] = []
        self.statuses: Counter[int | str] = Counter()
        """Answers by status, and connections that broke by what broke them."""
        self.codes: Counter[str] = Counter()
        """Refusals by the code of their problem document."""
        self.took_s: dict[int, list[float]] = {}
        self._sent: set[str] = set()
        self._servers = servers
        self._total = total
        self._padding_bytes = padding_bytes
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rounds = 0

    def __enter__(self) -> Clients:
        """May be entered again: the next round's names are others."""
        self._rounds += 1
        self._over.clear()
        self._threads = [
            threading.Thread(target=self._post, args=(number, self._servers[number % len(self._servers)]))
            for number in range(self._total)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_acked(self, more: int) -> None:
        """Return when so many more are acked."""
        target = len(self.acked) + more
        assert wait_until(lambda: len(self.acked) >= target, GIVE_UP_S), self.statuses

    def wait_connected(self) -> None:
        """Return when each of them has been answered."""
        assert wait_until(lambda: len({name.split("-")[1] for name in list(self.acked)}) == self._total, GIVE_UP_S)

    def _post(self, client: int, server: Server) -> None:
        count = 0
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_S)
        while not self._over.is_set():
            count += 1
            name = f"{self._rounds}-{client}-{count}"
            body = json.dumps(report(name, padding_bytes=self._padding_bytes)).encode()
            self._sent.add(name)
            start_s = time.monotonic()
            try:
                connection.request("POST", "/api/v1/reports", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.statuses[type(error).__name__] += 1
                self._over.wait(0.05)
                continue
            took_s = time.monotonic() - start_s
            with self._lock:
                self.statuses[response.status] += 1
                self.took_s.setdefault(response.status, []).append(took_s)
                if response.status == 200:
                    self.acked.append(name)
                else:
                    self.codes[json.loads(content)["type"].rpartition(":")[2]] += 1
            self._over.wait(self._pause_s if response.status == 200 else 0.05)
        connection.close()

    def lost(self, lines: Iterable[dict[str, Any]]) -> list[str]:
        """What was acked and stands in no line. Raises AssertionError if a line is a copy, altered or of nobody."""
        stored = Counter[str]()
        for line in lines:
            name = line["report"]["clientId"]
            stored[name] += 1
            assert name in self._sent, f"nobody sent {name}"
            assert line["report"] == report(name, padding_bytes=self._padding_bytes), f"{name} is altered"
            crc = line.pop("crc")
            text = json.dumps(line, separators=(",", ":"), ensure_ascii=False).removesuffix("}").encode()
            assert zlib.crc32(text) == int(crc, 16), f"{name} has a wrong checksum"
        assert [name for name, count in stored.items() if count > 1] == [], "reports are stored twice"
        return [name for name in self.acked if not stored[name]]

    def audit(self, server: Server) -> None:
        """Once the server has stopped: nothing acked is lost, nothing is stored twice, nothing is set aside."""
        assert self.acked
        lost = self.lost(server.stored())
        assert lost == [], f"{len(lost)} of {len(self.acked)} acked reports are lost"
        assert server.open_files() == []
        assert not list((server.data_dir / "quarantine").iterdir())
