"""The requests of a run as bytes, with what their answers are held against."""

from __future__ import annotations

import ssl
import zlib
from typing import NamedTuple
from urllib.parse import urlsplit

import zstandard

from netwatch.loadtest.ledger import Ledger
from netwatch.loadtest.reports import Reports

# At their fastest: what the clients spend, the server cannot have on the same machine.
_ENCODERS = {"": bytes, "gzip": lambda body: zlib.compress(body, 1, 31), "zstd": zstandard.ZstdCompressor(1).compress}


class Address(NamedTuple):
    """Where the server is."""

    host: str
    port: int
    tls: ssl.SSLContext | None  # of an https:// address; SSL_CERT_FILE names a certificate of one's own
    base: str  # the path before /api
    netloc: str


def address(url: str) -> Address:
    """The parts of a server's address; ValueError with a sentence if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http:// or https:// address: {url}")
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    tls = ssl.create_default_context() if is_tls else None
    return Address(parts.hostname, port, tls, parts.path.rstrip("/"), parts.netloc.rpartition("@")[2])


class Request(NamedTuple):
    """One request; it can be sent more than once only if it has a key."""

    numbers: range  # of its reports, in the ledger
    bad: list[int]  # those that must be rejected
    body_bytes: int  # of JSON
    wire: bytes

    @property
    def good_total(self) -> int:
        return len(self.numbers) - len(self.bad)

    @property
    def first_good(self) -> int:
        """The number of the report whose id the answer gives."""
        return next(number for number in self.numbers if number not in self.bad)


class Requests:
    """Takes new reports from the ledger for each request."""

    def __init__(
        self,
        target: Address,
        reports: Reports,
        ledger: Ledger,
        *,
        batch: int = 0,
        encoding: str = "",
        keys: bool = False,
        token: str = "",
    ) -> None:
        """`batch` 0 makes single JSON objects, N makes NDJSON of N reports."""
        kind = "application/x-ndjson" if batch else "application/json"
        head = f"POST {target.base}/api/v1/reports HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: {kind}\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        head += f"Content-Encoding: {encoding}\r\n" if encoding else ""
        self._heads = head.encode(), f"{head}Connection: close\r\n".encode()
        self._encode = _ENCODERS[encoding]
        self._reports, self._ledger, self._count, self._keys = reports, ledger, max(1, batch), keys

    def next(self, client: int, *, is_last: bool = False) -> Request:
        """A client's next request; after the `is_last` of its connection the server is to close that."""
        numbers = self._ledger.take(client, self._count)
        ids = [self._ledger.report_id(client, number) for number in numbers]
        body = b"\n".join([self._reports.body(report_id) for report_id in ids])
        bad = [number for number, report_id in zip(numbers, ids, strict=True) if self._reports.is_bad(report_id)]
        key = f"Idempotency-Key: loadtest-{ids[0]}\r\n".encode() if self._keys else b""
        encoded = self._encode(body)
        wire = b"%b%bContent-Length: %d\r\n\r\n%b" % (self._heads[is_last], key, len(encoded), encoded)
        return Request(numbers, bad, len(body), wire)
