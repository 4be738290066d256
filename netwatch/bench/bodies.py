"""The bodies that are posted: reports of three sizes that all differ, so that no compressor is flattered."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Size(NamedTuple):
    """One kind of body."""

    hosts: int
    samples: int
    reports: int  # in a body
    bodies: int  # that differ: 17 MB in all, more than any window in which a compressor would find them again

    @property
    def content_type(self) -> str:
        return "application/json" if self.reports == 1 else "application/x-ndjson"


SIZES = {
    "small": Size(2, 3, 1, 28_000),  # 0.7 KB
    "medium": Size(10, 10, 1, 3000),  # 6 KB
    "large": Size(10, 60, 1, 600),  # 30 KB
    "ndjson": Size(2, 3, 1000, 28),  # 1000 small ones: 0.7 MB
}
SINGLY = {"ndjson": "small"}
"""What a server that takes no NDJSON is sent instead: the same reports, one in a request."""

_SITES = ("console", "mail", "git", "cdn", "portal", "droplets", "edge", "maps", "search", "gateway")
_CITIES = (("Berlin", "DE"), ("Oslo", "NO"), ("Lyon", "FR"), ("Toronto", "CA"))


def make_bodies(size: Size, seed: int = 1) -> list[bytes]:
    """The bodies of one size; the same for the same seed."""
    rng = random.Random(seed)
    return [b"\n".join(_report(rng, size) for _ in range(size.reports)) for _ in range(size.bodies)]


def write_bodies(path: Path, bodies: Sequence[bytes]) -> None:
    """As cycle.lua and the open-loop client read them: each after its length in decimal and a line break."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(body), body) for body in bodies))


def read_bodies(path: Path) -> list[bytes]:
    data, bodies, start = path.read_bytes(), [], 0
    while start < len(data):
        begin = data.index(b"\n", start) + 1
        start = begin + int(data[start:begin])
        bodies.append(data[begin:start])
    return bodies


def _report(rng: random.Random, size: Size) -> bytes:
    city, country = rng.choice(_CITIES)
    report: dict[str, Any] = {
        "clientId": f"{rng.getrandbits(128):032x}",
        "timestamp": f"2026-11-22T{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.uniform(0, 59):06.3f}Z",
        "geo": {"ip": f"198.51.100.{rng.randrange(256)}", "city": city, "country": country},
        "hosts": [_host(rng, site, size.samples) for site in rng.sample(_SITES, size.hosts)],
    }
    return json.dumps(report, separators=(",", ":")).encode()


def _host(rng: random.Random, site: str, samples: int) -> dict[str, Any]:
    start_ms = 1_790_000_000_000 + rng.randrange(10**10)
    base_ms = rng.uniform(5, 200)
    history: list[dict[str, Any]] = []
    for number in range(samples):
        failed = rng.random() < 0.02
        latency_ms = None if failed else round(base_ms + rng.expovariate(0.2), 1)
        error = "timeout" if failed else None
        history.append({"t": start_ms + 2000 * number, "latency": latency_ms, "error": error})
    status = "error" if history[-1]["error"] else "online"
    return {"name": site.title(), "url": f"https://{site}.example.com", "status": status, "history": history}
