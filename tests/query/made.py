"""A day of three hosts, made by the program's own lines and segments, to measure questions on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from netwatch.reports import Key, Lines
from netwatch.storage.files import Files, open_data_directory
from netwatch.storage.layout import OPEN, QUARANTINE, REPORTS, SegmentId, new_instance
from netwatch.storage.segment import Segment

DAY_S = 1_795_305_600  # 2026-11-22T00:00:00Z
MIB = 1024 * 1024
_CLIENTS = 240
_SITES = [(f"site-{n}", f"https://site-{n}.example.com/health") for n in range(40)]
_FAILURES = ["timeout", "connect: refused", "TLS: certificate expired"]


class _Host:
    """One netwatch host: its lines go into sealed files of 10 MiB, some in each commit."""

    def __init__(self, files: Files, name: str) -> None:
        self.lines = Lines(name, max_report_bytes=MIB, max_depth=32)
        self._files = files
        self._instance = new_instance()
        self._number = 0
        self._segment: Segment | None = None
        self._group: list[bytes] = []

    def store(self, line: bytes) -> None:
        self._group.append(line)
        if len(self._group) == 16:
            self._commit()

    def _commit(self) -> None:
        if not self._segment:
            self._number += 1
            self._segment = Segment(self._files, SegmentId(self._instance, self._number), 1, is_synced=False)
        self._segment.append(self._group, 0.0)
        self._group = []
        if self._segment.lines_bytes >= 10 * MIB:
            self.seal()

    def seal(self) -> None:
        if self._group:
            self._commit()
        if self._segment:
            self._segment.seal()
            self._segment = None


def make(path: Path, total_bytes: int, *, seed: int = 1) -> int:
    """Make a data directory with so many bytes of lines; how many reports they are.

    They are of 240 clients, 6 KB each, as far apart as fill a day; one in twenty is a browser's; a third has no
    Idempotency-Key; one in a hundred was sent to a second host too.
    """
    root = open_data_directory(path)
    files = Files(root)
    for directory in (OPEN, REPORTS, QUARANTINE):
        files.make_directory(directory)
    hosts = [_Host(files, f"host{n}") for n in range(3)]
    written = 0
    reports = 0
    for number, now_ns in enumerate(_times(total_bytes // 6400)):
        rng = random.Random(f"{seed}/{number}")
        host = hosts[number % 3]
        key = Key("", f"{seed}/{number}").id(0) if number % 3 else ""
        if number % 20 == 0:
            line = host.lines.browser_line(_browser_report(rng), now_ns, key, b"", ("all",))
        else:
            raw = _report(rng, number % _CLIENTS, now_ns // 1_000_000)
            line = host.lines.line(raw, now_ns, key)
            if number % 100 == 1 and key:
                again = hosts[(number + 1) % 3]
                again.store(again.lines.line(raw, now_ns + 5_000_000, key))
                reports += 1
        host.store(line)
        written += len(line)
        reports += 1
        if written >= total_bytes:
            break
    for host in hosts:
        host.seal()
    os.close(root)
    return reports


def _times(count: int) -> Iterator[int]:
    number = 0
    while True:
        yield (DAY_S * 1000 + number * 86_400_000 // max(count, 1)) * 1_000_000
        number += 1


def _report(rng: random.Random, client: int, now_ms: int) -> bytes:
    base_ms = 5 + client * 0.6
    hosts = []
    for name, url in rng.sample(_SITES, 10):
        samples = []
        for number in range(10):
            t = now_ms - 60_000 + 6000 * number + rng.randrange(20)
            if rng.random() < 0.02:
                samples.append(f'{{"t":{t},"latency":null,"error":"{rng.choice(_FAILURES)}"}}')
            else:
                samples.append(f'{{"t":{t},"latency":{base_ms + rng.expovariate(0.2):.1f},"error":null}}')
        hosts.append(f'{{"name":"{name}","url":"{url}","status":"online","history":[{",".join(samples)}]}}')
    return (
        f'{{"clientId":"agent-{client:04d}","geo":{{"city":"Berlin","country":"DE"}},"hosts":[{",".join(hosts)}]}}'
    ).encode()


def _browser_report(rng: random.Random) -> bytes:
    phase, kind = rng.choice(
        [("dns", "dns.name_not_resolved"), ("connection", "tcp.timed_out"), *[("application", "ok")] * 8]
    )
    body = {
        "sampling_fraction": 0.01 if kind == "ok" else 1.0,
        "elapsed_time": rng.randrange(3000),
        "phase": phase,
        "type": kind,
        "server_ip": "203.0.113.7",
        "protocol": "h2",
        "referrer": "",
        "method": "GET",
    }
    url = f"https://shop-{rng.randrange(5)}.example/p/{rng.randrange(1000)}"
    report = {"type": "network-error", "age": rng.randrange(60_000), "url": url, "user_agent": "Mozilla/5.0"}
    return json.dumps(report | {"body": body}).encode()
