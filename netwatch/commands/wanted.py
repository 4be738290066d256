"""Says of a stored line whether it is wanted: by when it was received, its kind, its client, the hosts it is about."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import urlsplit

import msgspec

from netwatch.storage.reader import Since
from netwatch.storage.segment import RECEIVED_AT

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Wanted:
    """Called with a line (without its line feed), says whether ``args`` (of :func:`options.add_wanted`) want it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.since = Since(args.since) if args.since is not None else None
        self._since = self.since.received_at if self.since else b""
        self._clients = frozenset(args.client or ())
        self._kinds = frozenset(args.kind or ())
        self._hosts = frozenset(args.host or ())
        # Lines are encoded as we encode: one without these bytes cannot be wanted, and most need not be decoded.
        self._traces = [
            tuple(_encode(text)[1:-1] for text in texts) for texts in (self._clients, self._kinds, self._hosts) if texts
        ]

    def __call__(self, line: bytes) -> bool:
        if line[RECEIVED_AT] < self._since:
            return False
        if not self._traces:
            return True
        if not all(any(trace in line for trace in traces) for traces in self._traces):
            return False
        members = _decode(line)
        report = members["report"]
        return (
            (not self._clients or report.get("clientId") in self._clients)
            and (not self._kinds or members["kind"] in self._kinds)
            and (not self._hosts or not self._hosts.isdisjoint(_hosts(report)))
        )


def _hosts(report: dict[str, Any]) -> set[str]:
    """The names of the hosts that a report is about, and those in its URLs, with and without a port."""
    about = report.get("hosts")
    hosts = [host for host in about if isinstance(host, dict)] if isinstance(about, list) else []
    found = {host["name"] for host in hosts if isinstance(host.get("name"), str)}
    for url in [report.get("url"), *(host.get("url") for host in hosts)]:
        if isinstance(url, str):
            try:
                parts = urlsplit(url)
            except ValueError:
                continue
            found |= {parts.netloc, parts.hostname or ""}
    return found
