"""What the questions are asked about: a data directory that two real servers filled."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.system.server import Server

SAMPLE_KINDS: list[dict[str, Any]] = [
    {"latency": None, "error": "timeout"},
    {"error": "connect: refused"},
    {"latency": 7, "error": "late, but there"},
    {"error": 'DNS: no such host\n"NXDOMAIN" 💥'},
    {},
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sealed files of two servers: reports of 25 hosts and browser reports; some came to both."""
    directory = tmp_path_factory.mktemp("asked")
    names = ("one", "two")
    servers = [Server(directory / name, directory / f"{name}.log", "--name", name, "--workers", "1") for name in names]
    fill(servers)
    for name in names:
        shutil.copytree(directory / name / "reports", directory / "data" / "reports", dirs_exist_ok=True)
    return directory / "data"


def fill(servers: list[Server]) -> None:
    """Start both, post, and stop them."""
    try:
        for server in servers:
            server.start()
        rng = random.Random(7)
        for number in range(60):
            reports = [_report(rng, f"agent-{rng.randrange(9)}") for _ in range(rng.randrange(1, 6))]
            key = {"Idempotency-Key": f"key-{number}"}
            # A retry to another host, as a proxy makes it when the first one gives no answer.
            for server in servers if number % 4 == 0 else [servers[number % 2]]:
                answer = server.post(*reports, headers=key)
                assert (answer.status, answer.json["accepted"]) == (200, len(reports))
        browsers = [_nel(rng) for _ in range(80)]
        browsers.append({"type": "csp-violation", "age": 3, "url": "https://shop.example/", "body": {"hosts": 5}})
        browsers.append({"type": "deprecation", "age": 0, "url": "about:blank", "body": "no object"})
        for server in servers:
            kind = {"Content-Type": "application/reports+json"}
            answer = server.ask("POST", "/api/v1/browser-reports", json.dumps(browsers).encode(), kind)
            assert answer.status == 204
        odd = {"clientId": "odd", "hosts": [], "Hosts": 5, "clientID": ["other"], "hosts ": {}}
        far = {
            "name": "far",
            "url": "u",
            "status": "s",
            "history": [{"t": -(2**63)}, {"t": 2**63 - 1, "latency": 1e300}],
        }
        assert servers[0].post(odd, {"clientId": "far", "hosts": [far]}).json["accepted"] == 2
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.end()


def _report(rng: random.Random, client: str) -> dict[str, Any]:
    return {
        "clientId": client,
        "hosts": [
            {
                "name": f"host-{number}",
                "url": f"https://host-{number}.example/",
                "status": "online",
                "history": [_sample(rng, number) for _ in range(rng.randrange(6))],
            }
            for number in rng.sample(range(25), rng.randrange(1, 5))
        ],
    }


def _sample(rng: random.Random, host: int) -> dict[str, Any]:
    sample: dict[str, Any] = {"t": 1_795_305_600_000 + rng.randrange(10**9)}
    if rng.random() < 0.02 * host:
        return sample | rng.choice(SAMPLE_KINDS)
    return sample | {"latency": round(host + rng.expovariate(0.2), 1)}


def _nel(rng: random.Random) -> dict[str, Any]:
    phase, kind = rng.choice(
        [("dns", "dns.name_not_resolved"), ("connection", "tcp.timed_out"), ("application", "http.error")]
        + [("application", "ok")] * 5
    )
    body = {"phase": phase, "type": kind, "elapsed_time": rng.randrange(900), "status_code": 0, "protocol": "h2"}
    if rng.random() < 0.9:
        body["sampling_fraction"] = rng.choice([0.01, 0.5, 1.0, 0])
    url = rng.choice(["https://shop.example/cart?x=1", "https://mail.example:8443/", "https://maps.example"])
    return {"type": "network-error", "age": rng.randrange(60_000), "url": url, "user_agent": "Firefox", "body": body}
