"""Lines and files as a server stores them, made without it, so that tests can plant faults in them."""

from __future__ import annotations

import json
import subprocess
import uuid
import zlib
from typing import Any

from netwatch.loadtest.reports import Reports

SEGMENT = "reports-2026-11-22T10-24-10.123Z-9f3a0c12-1.jsonl.zst"


def stored_report(reports: Reports, report_id: str) -> dict[str, Any]:
    """The report as the server stores it: latency with its decimal point."""
    report: dict[str, Any] = json.loads(reports.body(report_id))
    for host in report["hosts"]:
        for sample in host["history"]:
            if sample.get("latency") is not None:
                sample["latency"] = float(sample["latency"])
    return report


def with_crc(text: str) -> bytes:
    return f'{text},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def line_id(report_id: str = "") -> str:
    """A line's id: a new one, or the one that follows from the report's."""
    made = uuid.uuid5(uuid.NAMESPACE_OID, report_id) if report_id else uuid.uuid4()
    return str(uuid.UUID(int=made.int & ~(0xF << 76) | 7 << 76))


def line(report: dict[str, Any], id_: str = "") -> bytes:
    fixed: dict[str, Any] = {
        "id": id_ or line_id(),
        "receivedAt": "2026-11-22T10:24:10.123456Z",
        "kind": "report",
        "server": "host1",
        "report": report,
    }
    return with_crc(json.dumps(fixed, separators=(",", ":"), ensure_ascii=False)[:-1])


def zstd(lines: list[bytes]) -> bytes:
    return subprocess.run(["zstd", "-1", "-c"], input=b"".join(lines), capture_output=True, check=True).stdout
