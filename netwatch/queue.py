"""The queue from the workers to the writer, both ends: one link a worker, batches of lines down, acks back.

It is our own because ``multiprocessing.Queue`` cannot keep the promise that a report is safe before it is answered:
``put()`` returns before anything has left the process, a producer killed in the middle of a write stops all others, and
nothing comes back. Here a link is a Unix stream socket with one batch in flight on it: what arrives meanwhile gathers
into the next batch, so batching needs no timer, an ack that was sent is always read, and what is unknown after a crash
is one batch. A worker whose link breaks connects again and sends that batch again, marked as a resend.

From a worker: once ``magic, link id``, then batches ``size, number, first sent (monotonic ns), flags`` and the lines.
Where requests have an idempotency key, a table stands before the lines: ``count`` and for each ``key, start, end``.
From the writer: ``number, outcome, count`` for each batch and ``accepted lines, first id`` for each request with a key;
with number 0 what a batch sent now would get (a sign of life).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from netwatch.errors import Overloaded
from netwatch.reports import LINE_END, LINE_START, is_whole

STORED: Final = "stored"
_OUTCOMES: Final = (STORED, "disk_full", "disk_error", "recovering", "unknown")
_REFUSALS: Final = {
    "disk_full": ("The disk is full or below its reserve; try again later.", 10),
    "disk_error": ("The disk failed to store the request; try again later.", 5),
    "recovering": ("The writer is finishing what a crash left; try again later.", 1),
    "unknown": ("The request may have been stored or not.", 1),
}
_HELLO: Final = struct.Struct("<4s16s")
_MAGIC: Final = b"nwq1"
_BATCH: Final = struct.Struct("<IQQB")
_ACK: Final = struct.Struct("<QBI")
_COUNT: Final = struct.Struct("<I")
_KEYED: Final = struct.Struct("<16sII")
_RESULT: Final = struct.Struct("<I36s")
_ASCII_BYTES: Final = 86
"""A line begins with so many bytes that are ASCII whatever was reported."""
_RESEND: Final = 1
_HAS_KEYS: Final = 2
_READ_BYTES: Final = 64 * 1024
_MAX_KEYED: Final = 1024
"""Most requests with a key in a batch: their ack must fit into the socket, or it would never arrive."""
_REMEMBER_S: Final = 60.0
_FOLLOW_UP_S: Final = 50e-6
"""A worker that was just answered sends what gathered meanwhile within so long, if it is not busy."""
_MIN_RECONNECT_S: Final = 0.01
_MAX_RECONNECT_S: Final = 0.5


class Stored(NamedTuple):
    """What became of a request with a key: how many of its lines are new, and the id that its first answer gave."""

    accepted: int
    first_id: str


@dataclasses.dataclass(slots=True)
class _Request:
    """One request's lines on their way, and who waits for their ack."""

    lines: bytes
    key: bytes
    stored: asyncio.Future[Stored | None]
    deadline_s: float


class Link(asyncio.Protocol):
    """A worker's end. :meth:`open` it in the event loop that it is used in; it stays open whatever the writer does."""

    def __init__(self, path: str, *, batch_bytes: int, ack_timeout_s: float) -> None:
        self._path = path
        self._batch_bytes = batch_bytes
        self._ack_timeout_s = ack_timeout_s
        self._id = secrets.token_bytes(16)
        self._transport: asyncio.WriteTransport | None = None
        self._number = 0
        self._first_sent_ns = 0
        self._in_flight: list[_Request] = []
        self._payload = b""
        self._flags = 0
        self._is_resent = False
        self._gathering: deque[_Request] = deque()
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""
        self._outcome = STORED
        self._heard_at_s = 0.0
        self._pause_s = 0.0
        self._connecting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect, and connect again whenever the link breaks, until :meth:`close`."""
        self._loop = asyncio.get_running_loop()
        self._heard_at_s = self._loop.time()
        self._connecting = self._loop.create_task(self._connect())

    def store(self, lines: bytes, key: bytes = b"") -> asyncio.Future[Stored | None]:
        """Hand over one request's lines; the future is done when they are safe, or raises :class:`Overloaded`.

        ``key`` is the digest (16 bytes) of the request's idempotency key; only then is there a result.
        """
        stored: asyncio.Future[Stored | None] = self._loop.create_future()
        deadline_s = self._loop.time() + self._ack_timeout_s
        self._gathering.append(_Request(lines, key, stored, deadline_s))
        if not self._timer:
            self._timer = self._loop.call_at(deadline_s, self._expire)
        if not self._is_due:  # at the end of this turn of the loop, so that what arrives together goes together
            self._is_due = True
            self._loop.call_soon(self._send_next)
        return stored

    def ages_s(self) -> tuple[float, float]:
        """How long the oldest request has waited for its ack, and since when the writer has shown no life."""
        oldest = next(iter((*self._in_flight, *self._gathering)), None)
        now_s = self._loop.time()
        return now_s - oldest.deadline_s + self._ack_timeout_s if oldest else 0.0, now_s - self._heard_at_s

    def trouble(self, max_wait_s: float) -> str | None:
        """Why a report sent now may not be stored soon (a code of the errors, or ``writer_away``), or None."""
        waited_s, silent_s = self.ages_s()
        if waited_s > max_wait_s:
            return "ack_timeout"
        if not self._transport or silent_s > max_wait_s:
            return "writer_away"
        return None if self._outcome == STORED else self._outcome

    async def close(self) -> None:
        """Wait until everything handed over was answered, then disconnect."""
        waiting = [request.stored for request in (*self._in_flight, *self._gathering)]
        await asyncio.gather(*waiting, return_exceptions=True)
        connecting, self._connecting = self._connecting, None
        if connecting:
            connecting.cancel()
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce the link, and send again what was not answered: whoever waits for it still wants it."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._received = b""
        self._transport.write(_HELLO.pack(_MAGIC, self._id))
        if any(not request.stored.done() for request in self._in_flight):
            self._send(_RESEND)
        else:
            self._in_flight = []
            self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Connect again, unless this end is closing."""
        self._transport = None
        if self._connecting:
            self._connecting = self._loop.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        """Take acks."""
        data = self._received + data
        position = 0
        self._heard_at_s = self._loop.time()
        self._pause_s = 0.0
        while len(data) - position >= _ACK.size:
            number, outcome, count = _ACK.unpack_from(data, position)
            end = position + _ACK.size + count * _RESULT.size
            if end > len(data):
                break
            if number == 0:
                self._outcome = _OUTCOMES[outcome]
            elif number == self._number and self._in_flight:
                self._settle(_OUTCOMES[outcome], data[position + _ACK.size : end])
            position = end
        self._received = data[position:]

    def _settle(self, outcome: str, results: bytes) -> None:
        requests, self._in_flight, self._payload = self._in_flight, [], b""
        stored = iter([Stored(accepted, first.decode()) for accepted, first in _RESULT.iter_unpack(results)])
        for request in requests:
            result = next(stored, None) if request.key else None
            if request.stored.done():  # it waited too long
                continue
            if outcome == STORED:
                request.stored.set_result(result)
            else:
                detail, retry_after_s = _REFUSALS[outcome]
                # refused only when it was sent again, it may have been stored the first time
                may_be_stored = outcome == "unknown" or self._is_resent
                request.stored.set_exception(
                    Overloaded(outcome, detail, retry_after_s=retry_after_s, may_be_stored=may_be_stored)
                )
        self._send_next()

    def _send_next(self) -> None:
        self._is_due = False
        if self._in_flight or not self._gathering or not self._transport:
            return
        size = 0
        pieces: list[bytes] = []
        table: list[bytes] = []
        while (
            self._gathering
            and len(table) < _MAX_KEYED
            and (not size or size + len(self._gathering[0].lines) <= self._batch_bytes)
        ):
            request = self._gathering.popleft()
            if request.key:
                table.append(_KEYED.pack(request.key, size, size + len(request.lines)))
            size += len(request.lines)
            pieces.append(request.lines)
            request.lines = b""
            self._in_flight.append(request)
        self._flags = _HAS_KEYS if table else 0
        if table:
            pieces = [_COUNT.pack(len(table)), *table, *pieces]
        self._payload = b"".join(pieces)
        self._number += 1
        self._first_sent_ns = time.monotonic_ns()
        self._send(0)

    def _send(self, flags: int) -> None:
        assert self._transport
        self._is_resent = bool(flags & _RESEND)
        header = _BATCH.pack(len(self._payload), self._number, self._first_sent_ns, self._flags | flags)
        self._transport.writelines([header, self._payload])

    def _expire(self) -> None:
        """Refuse what has waited too long; what was sent may be stored all the same."""
        now_s = self._loop.time()
        while self._gathering and self._gathering[0].deadline_s <= now_s:
            self._refuse_late(self._gathering.popleft(), may_be_stored=False)
        for request in self._in_flight:
            if request.deadline_s <= now_s:
                self._refuse_late(request, may_be_stored=True)
        waiting = [r.deadline_s for r in (*self._in_flight, *self._gathering) if not r.stored.done()]
        self._timer = self._loop.call_at(min(waiting), self._expire) if waiting else None

    @staticmethod
    def _refuse_late(request: _Request, *, may_be_stored: bool) -> None:
        if not request.stored.done():
            what = "may have been stored or not" if may_be_stored else "was not stored"
            detail = f"The writer did not answer in time; the request {what}."
            request.stored.set_exception(Overloaded("ack_timeout", detail, may_be_stored=may_be_stored))

    async def _connect(self) -> None:
        """Connect, at once if the writer was heard since the last time, and else more and more rarely."""
        while True:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(max(self._pause_s * 2, _MIN_RECONNECT_S), _MAX_RECONNECT_S)
            try:
                await self._loop.create_unix_connection(lambda: self, self._path)
            except OSError:
                continue
            return


@dataclasses.dataclass(slots=True)
class Batch:
    """What one link sent at a time; ``first_sent_s`` is monotonic."""

    link: _Connection
    number: int
    first_sent_s: float
    is_resend: bool
    lines: bytes | bytearray
    keyed: list[tuple[bytes, int, int]]
    """The requests with an idempotency key: its digest, and where their lines start and end, in order."""


class _Broken(Exception):
    """A link that is closed by its worker, or that does not speak our format."""


def _holds_lines(batch: Batch) -> bool:
    """Whether it can do the writer no harm: both its ends look right, and every line whose id is read is whole.

    Those are a resend's and the ones of requests with a key. That the others are whole is their worker's part: to check
    it here would double what the writer spends on NDJSON.
    """
    parts = [batch.lines] if batch.is_resend else [batch.lines[start:end] for _, start, end in batch.keyed]
    for part in parts:
        *lines, rest = bytes(part).split(b"\n")
        if rest or not lines or not all(map(is_whole, lines)):
            return False
    head = batch.lines[:_ASCII_BYTES]
    return head.startswith(LINE_START) and head.isascii() and batch.lines.endswith(LINE_END)


class _Connection:
    """The writer's end of one link."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.id = b""
        self.batch: Batch | None = None
        self._head = b""
        self._body = memoryview(b"")
        self._filled = 0
        self._has_keys = False

    def read(self, max_batch_bytes: int) -> bool:
        """Read what has come; True when ``batch`` is whole. Raises :class:`_Broken`."""
        if self.batch and not self._body:  # nothing but its end may come before its batch was answered
            raise _Broken
        try:
            if self._body:
                count = self.sock.recv_into(self._body[self._filled :])
                self._filled += count
            else:
                data = self.sock.recv(_READ_BYTES)
                count = len(data)
                self._head += data
        except BlockingIOError:
            return False
        except OSError as error:
            raise _Broken from error
        if not count:
            raise _Broken
        return self._parse(max_batch_bytes)

    def _parse(self, max_batch_bytes: int) -> bool:
        if not self.id:
            if len(self._head) < _HELLO.size:
                return False
            magic, self.id = _HELLO.unpack_from(self._head)
            if magic != _MAGIC:
                raise _Broken
            self._head = self._head[_HELLO.size :]
        if not self.batch:
            if len(self._head) < _BATCH.size:
                return False
            size, number, first_sent_ns, flags = _BATCH.unpack_from(self._head)
            if not 0 < size <= max_batch_bytes or not number or flags & ~(_RESEND | _HAS_KEYS):
                raise _Broken
            lines: bytes | bytearray = self._head[_BATCH.size : _BATCH.size + size]
            self._head = self._head[_BATCH.size + size :]
            if len(lines) < size:
                self._filled = len(lines)
                start, lines = lines, bytearray(size)
                lines[: len(start)] = start
                self._body = memoryview(lines)
            self.batch = Batch(self, number, first_sent_ns / 1e9, bool(flags & _RESEND), lines, [])
            self._has_keys = bool(flags & _HAS_KEYS)
        if self._filled < len(self._body):
            return False
        self._body = memoryview(b"")
        if self._has_keys:
            self._take_table(self.batch)
        if self._head or not _holds_lines(self.batch):
            raise _Broken
        return True

    @staticmethod
    def _take_table(batch: Batch) -> None:
        """Split the table of requests with keys from the lines after it."""
        try:
            (count,) = _COUNT.unpack_from(batch.lines)
            start = _COUNT.size + count * _KEYED.size
            table = bytes(batch.lines[_COUNT.size : start])
            batch.keyed = [(key, begin, end) for key, begin, end in _KEYED.iter_unpack(table)]
        except struct.error:
            raise _Broken from None
        batch.lines = batch.lines[start:]
        edges = [edge for _, begin, end in batch.keyed for edge in (begin, end)]
        if len(batch.keyed) != count or edges != sorted(edges) or edges[-1:] > [len(batch.lines)]:
            raise _Broken

    def send(self, number: int, outcome: str, results: Sequence[Stored] = ()) -> None:
        """Send an ack. Raises OSError."""
        table = [_RESULT.pack(result.accepted, result.first_id.encode()) for result in results]
        data = b"".join([_ACK.pack(number, _OUTCOMES.index(outcome), len(table)), *table])
        if self.sock.send(data) != len(data):
            raise BlockingIOError


class Inbox:
    """The writer's end of all links: batches out of ``listener``, in groups of about ``group_bytes``.

    ``wakeup`` is a descriptor that becomes readable when :meth:`receive` should return early (a signal). While there is
    more to do, links that were just answered have ``follow_up_s`` to be part of the next group: without that, the links
    of two busy workers take turns, and each commit syncs one batch.
    """

    def __init__(
        self,
        listener: socket.socket,
        wakeup: int,
        *,
        max_batch_bytes: int,
        group_bytes: int,
        follow_up_s: float = _FOLLOW_UP_S,
    ) -> None:
        self._listener = listener
        self._wakeup = wakeup
        self._max_batch_bytes = max_batch_bytes
        self._group_bytes = group_bytes
        self._follow_up_s = follow_up_s
        self._selector = selectors.DefaultSelector()
        self._listen()
        self._selector.register(wakeup, selectors.EVENT_READ)
        self._links: dict[_Connection, None] = {}
        self._whole: deque[Batch] = deque()
        self._just_answered: set[_Connection] = set()
        self._answered: dict[bytes, tuple[int, str, Sequence[Stored], float]] = {}

    def __len__(self) -> int:
        """How many links there are, and batches of links that are gone."""
        return len(self._links) + len(self._whole)

    def receive(self, timeout_s: float) -> list[Batch]:
        """A group: what the links hold, as far as ``group_bytes`` go, at least one batch; [] after ``timeout_s``."""
        if not self._look(0) and not self._whole:  # nothing came while the last group was committed
            self._just_answered.clear()
            self._look(timeout_s)
        if self._whole and self._just_answered:
            time.sleep(self._follow_up_s)
            self._look(0)
            self._just_answered.clear()
        group: list[Batch] = []
        size = 0
        while self._whole and (not group or size + len(self._whole[0].lines) <= self._group_bytes):
            group.append(self._whole.popleft())
            size += len(group[-1].lines)
        return group

    def _look(self, timeout_s: float) -> bool:
        """Read what has come, or comes within that time; whether anything has."""
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == self._wakeup:
                os.read(self._wakeup, 4096)
            elif key.data in self._links:  # not closed a moment ago by its successor
                self._read(key.data)
        return bool(ready)

    def answer(self, batch: Batch, outcome: str, results: Sequence[Stored] = ()) -> None:
        """Ack the batch, or say why it is refused; a worker that resends it later gets the same answer.

        ``results`` has what became of each request with a key.
        """
        link = batch.link
        self._answered[link.id] = (batch.number, outcome, results, time.monotonic())
        link.batch = None
        self._just_answered.add(link)
        if link in self._links:
            try:
                link.send(batch.number, outcome, results)
            except OSError:  # the worker died, or has not read for minutes
                self._close(link)

    def heartbeat(self, outcome: str) -> None:
        """Tell each worker what a batch sent now would get; forget the answers that nobody can ask for any more."""
        if not self._is_listening:
            self._listen()
        for link in list(self._links):
            with contextlib.suppress(OSError):
                link.send(0, outcome)
        horizon_s = time.monotonic() - _REMEMBER_S
        alive = {link.id for link in self._links}
        self._answered = {
            key: answer for key, answer in self._answered.items() if key in alive or answer[3] > horizon_s
        }

    def close(self) -> None:
        """Close every link."""
        for link in list(self._links):
            self._close(link)
        self._selector.close()

    def _listen(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._is_listening = True

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors left: the worker waits for the next heartbeat, or we would turn in circles
                self._selector.unregister(self._listener)
                self._is_listening = False
                return
            sock.setblocking(False)
            link = _Connection(sock)
            self._links[link] = None
            self._selector.register(sock, selectors.EVENT_READ, link)

    def _read(self, link: _Connection) -> None:
        is_new = not link.id
        try:
            is_whole = link.read(self._max_batch_bytes)
        except _Broken:
            self._close(link)
            return
        if is_new and link.id:
            for predecessor in [other for other in self._links if other.id == link.id and other is not link]:
                self._close(predecessor)
            # also of one that hung up before: its resend would be a second copy
            self._whole = deque(batch for batch in self._whole if batch.link.id != link.id)
        if is_whole and link.batch:
            number, outcome, results, _ = self._answered.get(link.id, (0, STORED, (), 0.0))
            if link.batch.number == number:
                self.answer(link.batch, outcome, results)
            elif link.batch.number < number:
                self._close(link)
            else:
                self._whole.append(link.batch)
                self._just_answered.discard(link)

    def _close(self, link: _Connection) -> None:
        self._selector.unregister(link.sock)
        link.sock.close()
        del self._links[link]
