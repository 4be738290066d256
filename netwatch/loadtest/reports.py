"""The reports that a run sends: each follows from the run's seed and its id alone, so that none has to be kept."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """How large a report is, and how many different payloads are cycled through."""

    hosts: int
    samples: int
    payloads: int  # together well over zstd's window, or repeats would flatter the compressor


SHAPES = {"small": Shape(2, 3, 3000), "medium": Shape(10, 10, 400), "large": Shape(10, 60, 100)}  # 0.7, 6 and 30 KB

SITES = (
    ("Search", "https://search.example.com/"),
    ("Mail", "https://mail.example.com/health"),
    ("Bücher & Zeitschriften", "https://buecher.example.de/?q=%C3%BC"),
    ("Video", "https://video.example.net/v1/ping"),
    ("CDN edge", "https://edge.example.net/204"),
    ("Maps", "https://maps.example.org/tiles"),
    ("東京 mirror", "https://mirror.example.jp"),
    ("Bank", "https://bank.example.ch/status"),
    ("Home router", "http://192.168.1.1"),
    ("Printer \"2nd floor\"", "http://10.0.0.77:631"),
)  # fmt: skip
ERRORS = ("timeout", "connection refused", "TLS: certificate expired", "DNS: no such host\n(NXDOMAIN)", "reset 💥")
CITIES = (("Berlin", "DE"), ("Zürich", "CH"), ("São Paulo", "BR"), ("Oslo", "NO"), ("Toronto", "CA"))


@dataclass(frozen=True, slots=True)
class Payload:
    """The large part of a report, made once and used by many."""

    names: frozenset[str]  # its members' names
    sent: bytes  # the members as JSON, without the braces
    canonical: str  # of what must be stored


class Reports:
    """All reports that one run can send."""

    def __init__(self, seed: int, size: str) -> None:
        rng = random.Random(f"{seed}/{size}")
        shape = SHAPES[size]
        self._seed = seed
        self._payloads = [_payload(rng, shape) for _ in range(shape.payloads)]

    def body(self, report_id: str) -> bytes:
        """The report as one line of JSON, as a client sends it."""
        head, payload = self._parts(report_id)
        return json.dumps(head, separators=(",", ":")).encode()[:-1] + b"," + payload.sent + b"}"

    def differs(self, report_id: str, stored: dict[str, Any]) -> str:
        """The first member that is not what was sent under this id, or "" when all are; `latency` must be a float."""
        head, payload = self._parts(report_id)
        rest = {name: value for name, value in stored.items() if name not in payload.names}
        if canonical(rest) != canonical(head):
            wrong = (name for name in head if canonical(rest.get(name)) != canonical(head[name]))
            return next(wrong, f"members {sorted(stored)}")
        if canonical({name: stored.get(name) for name in payload.names}) != payload.canonical:
            return "hosts"
        return ""

    def _parts(self, report_id: str) -> tuple[dict[str, Any], Payload]:
        rng = random.Random(f"{self._seed}/{report_id}")
        city, country = rng.choice(CITIES)
        pick = rng.getrandbits(40)
        head: dict[str, Any] = {
            "clientId": report_id,
            "timestamp": f"2026-11-22T{pick % 24:02d}:{pick % 60:02d}:{pick % 59:02d}.{pick % 1000:03d}"
            + ("Z", "+05:30", "-08:00")[pick % 3],
            "geo": {
                "ip": f"203.0.113.{pick % 256}",
                "city": city,
                "country": country,
                "lat": pick % 900_000 / 10_000,
                "lon": -0.5,
            },
        }
        return head, self._payloads[pick % len(self._payloads)]


def canonical(value: object) -> str:
    """One text for each JSON value: members sorted, 5 and 5.0 told apart."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _payload(rng: random.Random, shape: Shape) -> Payload:
    extra = rng.random() < 0.1  # members that the server does not know take another way through it
    hosts = [_host(rng, name, url, shape.samples, extra) for name, url in rng.sample(SITES, shape.hosts)]
    members: dict[str, Any] = {"hosts": hosts}
    if extra:
        members["agent"] = {"version": "3.1.4", "tags": ["a", None, True, -0.25], "übrig": {}}
    sent = json.dumps(members, separators=(",", ":"), ensure_ascii=rng.random() < 0.5).encode()[1:-1]
    for host in hosts:
        for sample in host["history"]:
            if sample.get("latency") is not None:
                sample["latency"] = float(sample["latency"])
    return Payload(frozenset(members), sent, canonical(members))


def _host(rng: random.Random, name: str, url: str, samples: int, extra: bool) -> dict[str, Any]:
    start_ms = 1_790_000_000_000 + rng.randrange(10**10)
    base_ms = rng.uniform(5, 200)
    history: list[dict[str, Any]] = []
    for number in range(samples):
        sample: dict[str, Any] = {"t": start_ms + 2000 * number}
        kind = rng.random()
        if kind < 0.03:
            sample |= {"latency": None, "error": rng.choice(ERRORS)}
        elif kind < 0.05:
            sample |= {"error": rng.choice(ERRORS)}
        elif kind < 0.10:
            sample |= {"latency": int(base_ms)}
        elif kind < 0.15:
            sample |= {"latency": base_ms + rng.expovariate(0.2), "error": None}
        else:
            sample |= {"latency": round(base_ms + rng.expovariate(0.2), 1), "error": None}
        history.append(sample)
    host: dict[str, Any] = {
        "name": name,
        "url": url,
        "status": "error" if history[-1].get("latency") is None else "online",
        "history": history,
    }
    if extra:
        host["ttl"] = rng.randrange(-(2**63), 2**64)
    return host
