"""What each question must answer, worked out from the stored lines by Python alone."""

from __future__ import annotations

import json
import math
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Rows = list[dict[str, Any]]
PHASES = ("dns", "connection", "application")


def stored_lines(data: Path) -> Rows:
    """Every line of the sealed files, duplicates too."""
    files = sorted(str(path) for path in (data / "reports").glob("date=*/*.jsonl.zst"))
    output = subprocess.run(["zstd", "-dcq", "--", *files], check=True, capture_output=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines()]


def once(lines: Rows) -> Rows:
    """Of those with one id, the one that was received first."""
    first: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: (line["receivedAt"], json.dumps(line))):
        first.setdefault(line["id"], line)
    return list(first.values())


def samples(lines: Rows) -> Rows:
    """A row for each sample of each report."""
    return [
        {
            "host": host["name"],
            "client": line["report"]["clientId"],
            "received_at": line["receivedAt"],
            "latency_ms": sample.get("latency"),
            "error": sample.get("error"),
            "t": sample["t"],
        }
        for line in once(lines)
        if line["kind"] == "report"
        for host in line["report"]["hosts"]
        for sample in host["history"]
    ]


def by(rows: Rows, *members: str) -> dict[tuple[Any, ...], Rows]:
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[tuple(row[member] for member in members)].append(row)
    return groups


def worst_hosts(lines: Rows) -> Rows:
    found = []
    for (host,), rows in by(samples(lines), "host").items():
        latencies = [row["latency_ms"] for row in rows if row["latency_ms"] is not None]
        failed = sum(row["error"] is not None for row in rows)
        mean = round(sum(latencies) / len(latencies), 1) if latencies else None
        found.append(
            {
                "host": host,
                "samples": len(rows),
                "failed": failed,
                "failed_percent": round(100 * failed / len(rows), 2),
                "mean_ms": mean,
                "max_ms": round(max(latencies), 1) if latencies else None,
                "clients": len({row["client"] for row in rows}),
            }
        )
    return sorted(found, key=lambda row: (-row["failed"] / row["samples"], -(row["mean_ms"] or -1), row["host"]))[:20]


def percentiles(lines: Rows) -> Rows:
    rows = [row | {"hour": f"{row['received_at'][:13]}:00:00Z"} for row in samples(lines)]
    found = []
    for (host, hour), group in sorted(by(rows, "host", "hour").items()):
        latencies = sorted(row["latency_ms"] for row in group if row["latency_ms"] is not None)
        if latencies:
            ranks = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
            found.append(
                {"host": host, "hour": hour, "samples": len(latencies)}
                | {name: latencies[math.ceil(p * len(latencies)) - 1] for name, p in ranks.items()}
            )
    return found


def silent_clients(lines: Rows, now: datetime) -> Rows:
    reports = [
        {"client": line["report"]["clientId"], "at": line["receivedAt"], "server": line["server"]}
        for line in once(lines)
        if line["kind"] == "report"
    ]
    found = []
    for (client,), rows in by(reports, "client").items():
        last = max(rows, key=lambda row: row["at"])
        at = datetime.fromisoformat(last["at"])
        if (now - at).total_seconds() >= 900:
            minutes = int(now.timestamp() // 60 - at.timestamp() // 60)
            found.append(
                {"client": client, "last_seen": last["at"], "silent_minutes": minutes, "reports": len(rows)}
                | {"last_server": last["server"]}
            )
    return sorted(sorted(found, key=lambda row: row["client"]), key=lambda row: row["last_seen"], reverse=True)


def errors(lines: Rows) -> Rows:
    failed = [row for row in samples(lines) if row["error"] is not None]
    found = [
        {
            "error": error,
            "samples": len(rows),
            "hosts": len({row["host"] for row in rows}),
            "clients": len({row["client"] for row in rows}),
            "first_at": min(row["received_at"] for row in rows),
            "last_at": max(row["received_at"] for row in rows),
        }
        for (error,), rows in by(failed, "error").items()
    ]
    return sorted(found, key=lambda row: (-row["samples"], row["error"].encode()))


def availability(lines: Rows) -> Rows:
    """Who failed in a phase, of those who did not fail before it."""
    requests: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys((*PHASES, "ok"), 0.0))
    seen: dict[str, set[str]] = defaultdict(set)
    for line in once(lines):
        if line["kind"] == "network-error" and line["report"]["body"].get("phase") in PHASES:
            body = line["report"]["body"]
            share = body.get("sampling_fraction", 1)
            weight = 1 / share if 0 < share <= 1 else 1.0
            site = urlsplit(line["report"]["url"]).netloc
            requests[site]["ok" if body["type"] == "ok" else body["phase"]] += weight
            seen[site].add(body["phase"])
    found = []
    for site in sorted(requests):
        left = sum(requests[site].values())
        for phase in PHASES:
            failed = requests[site][phase]
            if phase in seen[site]:
                found.append(
                    {"site": site, "phase": phase, "requests": round(left, 3), "failed": round(failed, 3)}
                    | {"available_percent": round(100 * (1 - failed / left), 3)}
                )
            left -= failed
    return found


def servers(lines: Rows) -> Rows:
    found = []
    for (server, kind), rows in sorted(by(once(lines), "server", "kind").items()):
        times = [row["receivedAt"] for row in rows]
        clients = {row["report"].get("clientId") for row in rows} - {None}
        found.append(
            {"server": server, "kind": kind, "reports": len(rows), "clients": len(clients)}
            | {"first_at": min(times), "last_at": max(times)}
        )
    return found


def answers(lines: Rows, now_s: float) -> dict[str, Rows]:
    """The answer to every question, asked about all lines at that time."""
    return {
        "worst-hosts": worst_hosts(lines),
        "percentiles": percentiles(lines),
        "silent-clients": silent_clients(lines, datetime.fromtimestamp(now_s, UTC)),
        "errors": errors(lines),
        "availability": availability(lines),
        "servers": servers(lines),
    }


def alike(rows: Iterable[dict[str, Any]]) -> Rows:
    """Rows as both engines may write them: 5 and 5.0, and times with or without the decimals that are zero."""
    return [{member: _alike(value) for member, value in row.items()} for row in rows]


def _alike(value: Any) -> Any:
    if isinstance(value, str) and value[:2] == "20" and value[4:5] == "-":
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
