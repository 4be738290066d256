"""The reports that a run sends: each follows from the run's seed and its id alone, so that none has to be kept."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
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
PLACES = (
    '"city":"Berlin","country":"DE"',
    '"city":"Z\\u00fcrich","country":"CH"',
    '"city":"São Paulo","country":"BR"',
    '"city":"Oslo","country":"NO"',
    '"city":"Toronto","country":"CA"',
)
# Beside clientId, hosts and the extra members, all that a report has. By hand: a dict and json.dumps cost ten times.
_HEAD = (
    '"timestamp":"2026-11-22T%02d:%02d:%02d.%03d%s",'
    '"geo":{"ip":"203.0.113.%d",%s,"lat":%r,"lon":-0.5}'
)  # fmt: skip

_HOST = b'{"name":"a","url":"b","status":"c","history":[{"t":1},%b]}'
# What stands after the clientId of a report that must be rejected; %b takes the members of a good one's payload.
BAD = (
    b"%b",  # the closing brace is missing
    b'"hosts":{}}',
    b'"timestamp":"2026-11-22T10:24:10Z","geo":{}}',  # no hosts
    b'"timestamp":"yesterday",%b}',
    b'"geo":"Berlin",%b}',
    b'"hosts":[' + _HOST % b'{"t":"now"}' + b"]}",
    b'"hosts":[' + _HOST % b'{"t":2,"latency":-1}' + b"]}",
    b'"hosts":[' + _HOST % b'{"t":2,"latency":NaN}' + b"]}",
    b'"far":1e999,%b}',
    b'"long":99999999999999999999,%b}',
    b'"deep":' + b"[" * 100 + b"]" * 100 + b",%b}",
)


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """The large part of a report, made once and used by many."""

    sent: bytes  # the members as JSON, without the braces
    hosts: str  # what must be stored for `hosts`, in its canonical form
    rest: dict[str, Any]  # the members beside them


class Reports:
    """All reports that one run can send."""

    def __init__(self, seed: int, mix: Mapping[str, int], bad_share: float = 0.0) -> None:
        """`mix` weighs the sizes; `bad_share` of the reports are ones that must be rejected."""
        self._key = str(seed).encode()
        self._bad_below = round(bad_share * 2**32)
        sizes = {size: _payloads(seed, size) for size in mix}
        self._wheel = [sizes[size] for size, weight in mix.items() for _ in range(weight)]

    def body(self, report_id: str) -> bytes:
        """The report as one line of JSON, as a client sends it."""
        bad, _, _, pick = numbers = self._numbers(report_id)
        sent = self._payload(numbers).sent
        if bad < self._bad_below:
            ending = BAD[pick % len(BAD)]
            return b'{"clientId":"%b",%b' % (report_id.encode(), ending.replace(b"%b", sent))
        return b'{"clientId":"%b",%b,%b}' % (report_id.encode(), _head(pick), sent)

    def is_bad(self, report_id: str) -> bool:
        """Whether the report under this id must be rejected."""
        return self._bad_below > 0 and self._numbers(report_id)[0] < self._bad_below

    def payload(self, report_id: str) -> Payload:
        """The large part of the report."""
        return self._payload(self._numbers(report_id))

    def beside_hosts(self, report_id: str) -> dict[str, Any]:
        """All members of a good report but `hosts`, as they must be stored."""
        head: dict[str, Any] = json.loads(b"{%b}" % _head(self._numbers(report_id)[3]))
        return {"clientId": report_id} | head | self.payload(report_id).rest

    def _payload(self, numbers: tuple[int, int, int, int]) -> Payload:
        payloads = self._wheel[numbers[2] % len(self._wheel)]
        return payloads[numbers[1] % len(payloads)]

    def _numbers(self, report_id: str) -> tuple[int, int, int, int]:
        """Four random numbers of 32 bits that follow from the id."""
        return _FOUR(blake2b(report_id.encode(), digest_size=16, key=self._key).digest())


_FOUR = struct.Struct("<4I").unpack


def _head(pick: int) -> bytes:
    zone = ("Z", "+05:30", "-08:00")[pick % 3]
    clock = pick % 24, pick % 60, pick % 59, pick % 1000, zone
    return (_HEAD % (*clock, pick % 256, PLACES[pick % 5], pick % 900_000 / 10_000)).encode()


def canonical(value: object) -> str:
    """One text for each JSON value: members sorted, 5 and 5.0 told apart."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _payloads(seed: int, size: str) -> list[Payload]:
    rng = random.Random(f"{seed}/{size}")
    return [_payload(rng, SHAPES[size]) for _ in range(SHAPES[size].payloads)]


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
    return Payload(sent, canonical(members.pop("hosts")), members)


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
