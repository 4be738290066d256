"""``POST /api/v1/reports``: read, make lines, hand them to the link, wait for the ack, answer.

A request is whole: all its valid reports are stored by one commit before it is answered.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Protocol

import msgspec
from falcon.asgi import Request, Response

from netwatch.errors import Refused, Rejected
from netwatch.http import body
from netwatch.http.body import InFlight
from netwatch.reports import ID, Lines
from netwatch.settings import Settings

MAX_ERRORS: Final = 100
_TURN_S: Final = 0.005
"""Making lines gives way to other requests after this long."""

_encode = msgspec.json.Encoder().encode


class Storing(Protocol):
    """What a worker needs of the link: hand over lines, wait until they are safe."""

    def store(self, lines: bytes) -> asyncio.Future[None]:
        """See :meth:`netwatch.queue.Link.store`."""


class Reports:
    """The resource."""

    def __init__(self, link: Storing, settings: Settings) -> None:
        self._link = link
        self._in_flight = InFlight(settings.worker_in_flight_bytes)
        self._max_body_bytes = settings.max_body_bytes
        self._max_reports = settings.max_reports
        self._durability = settings.durability
        self._lines = Lines(settings.name, max_report_bytes=settings.max_report_bytes, max_depth=settings.max_depth)

    async def on_post(self, req: Request, resp: Response) -> None:
        """Store the reports of one request."""
        kind = body.media_type(req)
        size = body.declared_size(req, self._max_body_bytes)
        self._in_flight.take(size or 0)
        taken = [size or 0]
        try:
            resp.content_type = "application/json"
            resp.data = await self._store(body.split(await self._read(req, size, taken), kind, self._max_reports))
        finally:
            self._in_flight.give(taken[0])

    async def _read(self, req: Request, size: int | None, taken: list[int]) -> bytes:
        if size is None:
            return await body.read_chunked(req, self._in_flight, taken, self._max_body_bytes)
        return await body.read(req, size)

    async def _store(self, reports: list[bytes] | list[msgspec.Raw]) -> bytes:
        lines, errors, rejected = await self._make_lines(reports)
        if not lines and errors:
            code = errors[0]["code"] if len(reports) == 1 else "no_valid_report"
            raise Refused(
                code,
                errors[0]["detail"] if len(reports) == 1 else "Nothing was stored; see errors.",
                members={"rejected": rejected, "errors": errors},
            )
        first_id, accepted = lines[0][ID].decode() if lines else None, len(lines)
        if lines:
            stored = self._link.store(b"".join(lines))
            del reports, lines  # nothing of the request is kept twice while it waits: the link has it
            await stored
        return _encode(
            {
                "id": first_id,
                "accepted": accepted,
                "duplicates": 0,
                "rejected": rejected,
                "durability": self._durability,
                "errors": errors,
            }
        )

    async def _make_lines(
        self, reports: list[bytes] | list[msgspec.Raw]
    ) -> tuple[list[bytes], list[dict[str, Any]], int]:
        """The lines of the valid reports, what is wrong with the first of the others, and how many others there are."""
        lines: list[bytes] = []
        errors: list[dict[str, Any]] = []
        rejected = 0
        now_ns = time.time_ns()
        turn_ends_s = time.monotonic() + _TURN_S
        for index, report in enumerate(reports):
            try:
                lines.append(self._lines.line(report, now_ns))
            except Rejected as error:
                rejected += 1
                if len(errors) < MAX_ERRORS:
                    errors.append(
                        {"index": index, "code": error.code, "pointer": error.pointer, "detail": error.detail}
                    )
            if time.monotonic() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = time.monotonic() + _TURN_S
        return lines, errors, rejected
