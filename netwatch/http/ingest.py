"""``POST /api/v1/reports`` and ``/api/v1/browser-reports``: read, make lines, hand them over, await the ack, answer.

A request is whole: all its valid reports are stored by one commit before it is answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from falcon.asgi import Request, Response

from netwatch.errors import Overloaded, Refused, Rejected
from netwatch.http import body
from netwatch.http.access import Access, Sender, truncated
from netwatch.http.body import Raws
from netwatch.http.headers import header
from netwatch.http.in_flight import InFlight
from netwatch.http.turn import Turn
from netwatch.metrics import table
from netwatch.metrics.board import WorkerMeter
from netwatch.reports import ID, Key, Lines, address_member
from netwatch.settings import Settings

MAX_ERRORS: Final = 100
MAX_POINTER: Final = 500
_KEY: Final = re.compile(r'"([!-~]{1,128})"|(?!""$)([!-~]{1,128})')

_encode = msgspec.json.Encoder().encode
MakeLine = Callable[[bytes | msgspec.Raw, int, str, bytes], bytes]


class Ack(Protocol):
    """What became of a request with a key: see :class:`netwatch.queue.Stored`."""

    @property
    def accepted(self) -> int:
        """How many of its lines are new."""

    @property
    def first_id(self) -> str:
        """The id that its first answer gave."""


class Storing(Protocol):
    """What a worker needs of the link: hand over lines, wait until they are safe."""

    def store(self, lines: bytes, key: bytes = b"") -> asyncio.Future[Any]:
        """See :meth:`netwatch.queue.Link.store`; the result is an :class:`Ack` or None."""


@dataclasses.dataclass(slots=True)
class _Made:
    """What the ``count`` reports of a body became: lines, and what is wrong with the first of those that were rejected.

    They are counted as received.
    """

    count: int
    lines: bytes
    lines_total: int
    errors: list[dict[str, Any]]
    rejected: int


class _Taken(NamedTuple):
    """What became of a request: how many lines it had, how many of them are new, and the id of its first answer."""

    first_id: str | None
    lines_total: int
    accepted: int
    errors: list[dict[str, Any]]
    rejected: int


class Door:
    """What the resources share: who may post, what is in flight, how a line is made, the link."""

    def __init__(self, link: Storing, settings: Settings, meter: WorkerMeter) -> None:
        self.access = Access(settings.tokens, settings.allowed_origins, settings.trusted_proxies)
        self.lines = Lines(settings.name, max_report_bytes=settings.max_report_bytes, max_depth=settings.max_depth)
        self.settings = settings
        self.link = link
        self._meter = meter
        limit = settings.worker_in_flight_bytes
        reserved = min(settings.page_reserve_bytes // settings.workers, limit - settings.max_body_bytes)
        self._in_flight = InFlight(limit, reserved, meter)
        self._body_bytes_at = meter.place(table.BODY_BYTES)

    async def take(
        self, req: Request, sender: Sender, kinds: frozenset[str], make_line: MakeLine, key: Key | None
    ) -> _Taken:
        """Read one request and store its valid reports; raises :class:`Refused` where it must be refused whole."""
        max_body_bytes = self.settings.max_body_bytes
        kind = body.media_type(req, kinds)
        size = body.declared_size(req, max_body_bytes)
        client = sender.token or sender.address
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            self._in_flight.take(client, count, is_page=sender.is_page)
            taken += count

        if size:
            take(size)
        try:
            data = await body.read(req, size, max_body_bytes, take)
            self._meter.cells[self._body_bytes_at] += len(data)
            address = self._address(sender)
            made = self._make_one(data, kind, make_line, key, address)
            if not made:
                reports = await body.split(data, kind, self.settings.max_reports)
                made = await self._make_lines(reports, make_line, key, address)
                del reports
            del data  # nothing of the request is kept while it waits: the link has it
            return await self._store(made, key)
        finally:
            self._in_flight.give(client, taken)

    async def _store(self, made: _Made, key: Key | None) -> _Taken:
        """Store the lines, and count what becomes of each report: the terms, whose sum is what was received."""
        terms = self._meter.terms
        count, lines_total, rejected = made.count, made.lines_total, made.rejected
        if not lines_total:
            terms.done(count, rejected=rejected)
            return _Taken(None, 0, 0, made.errors, rejected)
        first_id = made.lines[ID].decode()
        try:
            stored = self.link.store(made.lines, key.digest if key else b"")
            made.lines = b""
            ack: Ack | None = await stored
        except Overloaded as error:
            if error.may_be_stored:
                terms.done(count, rejected=rejected, unknown=lines_total)
            else:
                terms.done(count, rejected=rejected, shed=lines_total)
            raise
        except BaseException:  # a fault of ours, or the end of a drain; what was handed over may be stored
            terms.done(count, rejected=rejected, unknown=lines_total)
            raise
        accepted = ack.accepted if ack else lines_total
        if accepted == count:
            terms.stored(count)
        else:
            terms.done(count, stored=accepted, duplicate=lines_total - accepted, rejected=rejected)
        return _Taken(ack.first_id if ack else first_id, lines_total, accepted, made.errors, rejected)

    def _address(self, sender: Sender) -> bytes:
        detail = self.settings.address
        if detail == "none":
            return b""
        return address_member(sender.address if detail == "full" else truncated(sender.address))

    def _make_one(self, data: bytes, kind: str, make_line: MakeLine, key: Key | None, address: bytes) -> _Made | None:
        """The line of a body that is one valid report, as most are; None for all others."""
        if kind not in body.JSON or data[:1] != b"{":
            return None
        try:
            line = make_line(data, time.time_ns(), key.id(0) if key else "", address)
        except Rejected:
            return None
        self._meter.terms.received(1)
        return _Made(1, line, 1, [], 0)

    async def _make_lines(self, reports: Raws, make_line: MakeLine, key: Key | None, address: bytes) -> _Made:
        lines: list[bytes] = []
        errors: list[dict[str, Any]] = []
        count = len(reports)
        terms = self._meter.terms
        terms.received(count)
        now_ns = time.time_ns()
        turn = Turn()
        try:
            for index, report in enumerate(reports):
                try:
                    lines.append(make_line(report, now_ns, key.id(index) if key else "", address))
                except Rejected as error:
                    self._meter.add(table.REJECTIONS, labels=(error.code,))
                    if len(errors) < MAX_ERRORS:
                        pointer = _short(error.pointer)
                        errors.append({"index": index, "code": error.code, "pointer": pointer, "detail": error.detail})
                if turn.is_over:
                    await turn.give_way()
        except Refused as error:  # a report with which the whole request falls
            self._meter.add(table.REJECTIONS, count - index + len(lines), (error.code,))
            terms.done(count, rejected=count)
            raise
        except BaseException:  # a fault of ours, or the end of a drain
            terms.done(count, unknown=count)
            raise
        return _Made(count, b"".join(lines), len(lines), errors, count - len(lines))


class Reports:
    """The resource ``/api/v1/reports``."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._durability = door.settings.durability

    async def on_options(self, req: Request, resp: Response) -> None:
        """Answer a preflight."""
        self._door.access.preflight(req, resp)

    async def on_post(self, req: Request, resp: Response) -> None:
        """Store the reports of one request."""
        sender = self._door.access.admit(req, resp)
        key = _key(req, sender)
        taken = await self._door.take(req, sender, body.REPORTS, self._door.lines.line, key)
        if not taken.lines_total and taken.errors:
            is_one = taken.rejected == 1
            raise Refused(
                taken.errors[0]["code"] if is_one else "no_valid_report",
                taken.errors[0]["detail"] if is_one else "Nothing was stored; see errors.",
                members={"rejected": taken.rejected, "errors": taken.errors},
            )
        resp.content_type = "application/json"
        resp.data = _encode(
            {
                "id": taken.first_id,
                "accepted": taken.accepted,
                "duplicates": taken.lines_total - taken.accepted,
                "rejected": taken.rejected,
                "durability": self._durability,
                "errors": taken.errors,
            }
        )


class BrowserReports:
    """The resource ``/api/v1/browser-reports``, for the Reporting API, Network Error Logging and CSP.

    A body of the right shape is answered 204 whatever its reports are: a browser would send the whole array again.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._kept = frozenset(door.settings.kept_kinds)

    async def on_options(self, req: Request, resp: Response) -> None:
        """Answer a preflight."""
        self._door.access.preflight(req, resp)

    async def on_post(self, req: Request, resp: Response) -> None:
        """Store those of the reports that are valid and of a kind that is kept."""
        sender = self._door.access.admit(req, resp)
        if self._door.settings.retire_browser_reports:
            raise Refused("endpoint_retired", "Remove this endpoint from Report-To and Reporting-Endpoints.")
        sender = Sender(sender.token, sender.address, is_page=True)
        await self._door.take(req, sender, body.BROWSER, self._line, None)
        resp.status = 204

    def _line(self, raw: bytes | msgspec.Raw, now_ns: int, line_id: str, address: bytes) -> bytes:
        try:
            return self._door.lines.browser_line(raw, now_ns, line_id, address, self._kept)
        except Rejected as error:
            if error.code == "invalid_json":  # of an array it was seen before that it is JSON
                raise Refused(error.code, error.detail) from None
            raise


def _short(pointer: str) -> str:
    """The pointer, or that of the nearest member around it whose pointer is short: names can have a megabyte each."""
    return pointer if len(pointer) <= MAX_POINTER else pointer[:MAX_POINTER].rpartition("/")[0]


def _key(req: Request, sender: Sender) -> Key | None:
    """The request's idempotency key, with or without quotes; raises :class:`Refused` for one that is none."""
    given = header(req, b"idempotency-key")
    if given is None:
        return None
    match = _KEY.fullmatch(given.strip())
    if not match:
        raise Refused("invalid_key", "Send an Idempotency-Key of 1 to 128 visible ASCII characters.")
    return Key(sender.token, match[1] or match[2])
