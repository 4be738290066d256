"""Stored lines as strict JSON, decoded with none of the server's code.

Most of a line is the `hosts` of its report, of which a run sends only some thousand different ones. Each of those is
decoded and compared once, in the bytes in which the server stores it; where the same bytes stand again, they mean the
same, and only what is around them is decoded. That makes the audit of large reports twenty times faster.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from netwatch.loadtest.reports import Payload, Reports, canonical

_KNOWN: Final = object()  # in the place of hosts that are those that were sent

_ENVELOPE = ("id", "receivedAt", "generatedAt", "kind", "server", "address", "report", "crc")
_OPTIONAL = {"generatedAt", "address"}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_CLIENT = re.compile(r'"clientId":"([0-9a-f]{8}-\d+-\d+)"')


class Lines:
    """Decodes lines, and compares those of a run with what it sent."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._hosts: dict[Payload, str] = {}

    def decode(self, raw: bytes) -> dict[str, Any]:
        """The line's members, ValueError, with what is wrong, unless it is strict JSON in the right envelope."""
        line: dict[str, Any] = self._decode(raw.decode())
        _check_envelope(line)
        return line

    def differs(self, report_id: str, stored: dict[str, Any]) -> str:
        """The first member that is not what was sent under this id, or "" when all are; `latency` must be a float."""
        sent = self._reports.beside_hosts(report_id)
        rest = {name: value for name, value in stored.items() if name != "hosts"}
        if canonical(rest) != canonical(sent):
            wrong = (name for name in sent if canonical(rest.get(name)) != canonical(sent[name]))
            return next(wrong, f"members {sorted(stored)}")
        hosts = stored.get("hosts")
        return "" if hosts is _KNOWN or canonical(hosts) == self._reports.payload(report_id).hosts else "hosts"

    def _decode(self, text: str) -> Any:
        match = _CLIENT.search(text)
        if match is None:
            return _DECODER.decode(text)
        payload = self._reports.payload(match[1])
        known = self._hosts.get(payload)
        at = text.find(known) if known else -1
        if known is not None and at >= 0:
            # What is JSON with a value in this place is JSON with another one there, and what isn't isn't.
            line = _DECODER.decode(f'{text[:at]}"hosts":null{text[at + len(known) :]}')
            report = line.get("report") if isinstance(line, dict) else None
            if isinstance(report, dict) and report.get("clientId") == match[1] and report.get("hosts", 0) is None:
                report["hosts"] = _KNOWN
                return line
        line = _DECODER.decode(text)
        start = text.find('"hosts":')
        if known is None and start >= 0:
            hosts, end = _DECODER.raw_decode(text, start + len('"hosts":'))
            if canonical(hosts) == payload.hosts:
                self._hosts[payload] = text[start:end]
        return line


def _check_envelope(line: Any) -> None:
    """Raise ValueError unless the members around the report are the right ones, in order."""
    if not isinstance(line, dict):
        raise ValueError("not an object")
    expected = [name for name in _ENVELOPE if name in line or name not in _OPTIONAL]
    if list(line) != expected:
        raise ValueError(f"members {list(line)}")
    for name in ("receivedAt", "generatedAt"):
        if name in line and not _TIME.match(str(line[name])):
            raise ValueError(f"{name} {line[name]!r}")
    if not _UUID.match(str(line["id"])):
        raise ValueError(f"id {line['id']!r}")
    if not (isinstance(line["kind"], str) and isinstance(line["server"], str) and isinstance(line["report"], dict)):
        raise ValueError("kind, server or report")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice in one object")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Python lets more through than other readers do.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
