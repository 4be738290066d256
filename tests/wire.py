"""The queue's wire format spoken by hand: what a worker sends, what the writer answers; netwatch.queue is not used."""

from __future__ import annotations

import json
import secrets
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from netwatch.reports import Lines

HELLO: Final = struct.Struct("<4s16s")
BATCH: Final = struct.Struct("<IQQB")
ACK: Final = struct.Struct("<QBI")
MAGIC: Final = b"nwq1"
COUNT: Final = struct.Struct("<I")
KEYED: Final = struct.Struct("<16sII")
RESULT: Final = struct.Struct("<I36s")
RESEND: Final = 1
HAS_KEYS: Final = 2
OUTCOMES: Final = ("stored", "disk_full", "disk_error", "recovering", "unknown")

_lines = Lines("host1", max_report_bytes=1 << 20, max_depth=32)


def make_lines(count: int, padding: str = "") -> list[bytes]:
    """Lines as a worker makes them, each with its line feed; ``padding`` makes them longer."""
    reports = [{"clientId": f"client-{number}", "hosts": [], "note": padding} for number in range(count)]
    return [_lines.line(json.dumps(report).encode(), time.time_ns()) for report in reports]


def ids(lines: bytes) -> list[str]:
    """The ids of the lines, sorted."""
    return sorted(json.loads(line)["id"] for line in lines.splitlines())


def hello(link_id: bytes) -> bytes:
    """How a link introduces itself."""
    return HELLO.pack(MAGIC, link_id)


def batch(number: int, lines: bytes, *, first_sent_s: float | None = None, is_resend: bool = False) -> bytes:
    """A batch as it is sent."""
    if first_sent_s is None:  # of a resend: a while ago, before the writer that it was sent to died
        first_sent_s = time.monotonic() - (5 if is_resend else 0)
    first_sent_ns = int(first_sent_s * 1e9)
    return BATCH.pack(len(lines), number, first_sent_ns, RESEND if is_resend else 0) + lines


def keyed_batch(number: int, requests: Sequence[tuple[bytes, bytes]], *, is_resend: bool = False) -> bytes:
    """A batch of requests, each its key's digest (b"": it has none) and its lines."""
    table, lines = [], b""
    for key, own in requests:
        if key:
            table.append(KEYED.pack(key, len(lines), len(lines) + len(own)))
        lines += own
    payload = b"".join([COUNT.pack(len(table)), *table, lines])
    first_sent_ns = int((time.monotonic() - (5 if is_resend else 0)) * 1e9)
    return BATCH.pack(len(payload), number, first_sent_ns, HAS_KEYS | (RESEND if is_resend else 0)) + payload


class RawLink:
    """A worker's end, by hand: what it does is what is called. Waits at most ``timeout_s`` for anything."""

    def __init__(self, path: str, link_id: bytes = b"", *, timeout_s: float = 20.0, greet: bool = True) -> None:
        self.id = link_id or secrets.token_bytes(16)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout_s)
        self.sock.connect(path)
        self._received = b""
        if greet:
            self.sock.sendall(hello(self.id))

    def send(self, number: int, lines: bytes, *, first_sent_s: float | None = None, is_resend: bool = False) -> None:
        """Send a whole batch."""
        self.sock.sendall(batch(number, lines, first_sent_s=first_sent_s, is_resend=is_resend))

    def read_ack(self) -> tuple[int, str]:
        """The next ack or heartbeat: number, outcome. Raises EOFError when the writer closed the link."""
        number, outcome, results = self._read()
        assert not results, "no request of these batches has a key"
        return number, outcome

    def _read(self) -> tuple[int, str, list[tuple[int, str]]]:
        self._await(ACK.size)
        number, outcome, count = ACK.unpack_from(self._received)
        size = ACK.size + count * RESULT.size
        self._await(size)
        results = [
            (accepted, first_id.decode()) for accepted, first_id in RESULT.iter_unpack(self._received[ACK.size : size])
        ]
        self._received = self._received[size:]
        return number, OUTCOMES[outcome], results

    def _await(self, size: int) -> None:
        while len(self._received) < size:
            try:
                data = self.sock.recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError
            self._received += data

    def ack(self, number: int) -> str:
        """The outcome of the batch ``number``; heartbeats are passed over, the ack of another batch is an error."""
        while True:
            acked, outcome = self.read_ack()
            if acked:
                assert acked == number
                return outcome

    def store(self, number: int, lines: bytes, *, first_sent_s: float | None = None, is_resend: bool = False) -> str:
        """Send a batch and wait for its outcome."""
        self.send(number, lines, first_sent_s=first_sent_s, is_resend=is_resend)
        return self.ack(number)

    def store_keyed(
        self, number: int, *requests: tuple[bytes, bytes], is_resend: bool = False
    ) -> tuple[str, list[tuple[int, str]]]:
        """Send a batch of requests with keys: its outcome, and of each request its new lines and its first id."""
        self.sock.sendall(keyed_batch(number, requests, is_resend=is_resend))
        while True:
            acked, outcome, results = self._read()
            if acked:
                assert acked == number
                return outcome, results

    def heartbeat(self) -> str:
        """The outcome in the next heartbeat."""
        while True:
            acked, outcome = self.read_ack()
            if not acked:
                return outcome

    def wait_closed(self) -> None:
        """Return when the writer has closed the link; an ack before that is an error."""
        while True:
            try:
                number, _ = self.read_ack()
            except EOFError:
                return
            assert not number

    def has_news(self, timeout_s: float) -> bool:
        """Whether something can be read, or becomes readable in time."""
        return len(self._received) >= ACK.size or bool(select.select([self.sock], [], [], timeout_s)[0])

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
