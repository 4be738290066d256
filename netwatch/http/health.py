"""``/livez``, ``/readyz``, ``/version``: whether this worker answers, and whether a report sent now would be stored."""

from __future__ import annotations

import sys
import time
from typing import Any, Final, Protocol

from falcon.asgi import Request, Response

from netwatch import __version__
from netwatch.http.access import Guard
from netwatch.metrics import table
from netwatch.metrics.board import Board
from netwatch.metrics.table import NANO, Metric

MAX_WAIT_S: Final = 3.0
"""Not ready when a batch has waited this long for its ack, or the writer has shown no life for so long."""
SLOW_LASTS_S: Final = 5.0
"""Not ready so long after an fdatasync that took more than ``MAX_WAIT_S``, unless another was faster."""

_REASONS: Final = {
    "ack_timeout": "a batch has waited too long for its ack",
    "writer_away": "the writer is away",
    "disk_full": "the disk is below its reserve",
    "disk_error": "the disk fails",
    "disk_slow": "the disk took too long to make data safe",
    "draining": "this server drains",
}


class Watched(Protocol):
    """What is asked of the link."""

    def ages_s(self) -> tuple[float, float]:
        """See :meth:`netwatch.queue.Link.ages_s`."""

    def trouble(self, max_wait_s: float) -> str | None:
        """See :meth:`netwatch.queue.Link.trouble`."""


class Livez:
    """The resource ``/livez``."""

    async def on_get(self, req: Request, resp: Response) -> None:
        """This worker answers."""
        resp.media = {"status": "ok"}

    on_head = on_get  # which some monitors send


class Readyz:
    """The resource ``/readyz``; ``?verbose`` shows each check with its figure."""

    def __init__(self, link: Watched, board: Board, guard: Guard | None) -> None:
        self._link = link
        self._board = board
        self._guard = guard

    async def on_get(self, req: Request, resp: Response) -> None:
        """200, or 503 with the reasons."""
        codes = [
            self._link.trouble(MAX_WAIT_S),
            "disk_slow" if self._is_disk_slow() else None,
            "draining" if req.scope["state"].get("draining") else None,
        ]
        reasons = [{"code": code, "detail": _REASONS.get(code, code)} for code in codes if code]
        resp.media = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        if self._guard and req.get_param("verbose") is not None:
            self._guard(req, resp)
            resp.media["checks"] = self._checks(codes)
        if reasons:
            resp.status = 503
            req.scope["state"]["code"] = "not_ready"
            resp.set_header("Retry-After", "1")

    on_head = on_get

    def _is_disk_slow(self) -> bool:
        return (
            self._figure(table.LAST_SYNC_SECONDS) * NANO > MAX_WAIT_S
            and time.time() - self._figure(table.LAST_SYNC_AT) * NANO < SLOW_LASTS_S
        )

    def _checks(self, codes: list[str | None]) -> list[dict[str, Any]]:
        waited_s, silent_s = self._link.ages_s()
        free, reserve = self._figure(table.DISK_FREE_BYTES), self._figure(table.DISK_RESERVE_BYTES)
        is_disk_well = free >= reserve and not {"disk_full", "disk_error"}.intersection(codes)
        return [
            {
                "name": "writer",
                "ok": "writer_away" not in codes and silent_s <= MAX_WAIT_S,
                "sign_of_life_age_s": round(silent_s, 3),
                "limit_s": MAX_WAIT_S,
            },
            {
                "name": "batch",
                "ok": waited_s <= MAX_WAIT_S,
                "oldest_without_ack_s": round(waited_s, 3),
                "limit_s": MAX_WAIT_S,
            },
            {"name": "disk", "ok": is_disk_well, "free_bytes": free, "reserve_bytes": reserve},
            {
                "name": "fdatasync",
                "ok": "disk_slow" not in codes,
                "last_s": round(self._figure(table.LAST_SYNC_SECONDS) * NANO, 6),
                "limit_s": MAX_WAIT_S,
            },
            {"name": "quarantine", "ok": True, "files": self._figure(table.QUARANTINE_FILES)},
            {"name": "drain", "ok": "draining" not in codes},
        ]

    def _figure(self, metric: Metric) -> int:
        value: int = self._board.writer.cells[metric.first]
        return value


class Version:
    """The resource ``/version``."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def on_get(self, req: Request, resp: Response) -> None:
        """What runs here."""
        self._guard(req, resp)
        resp.media = {"version": __version__, "python": sys.version.partition(" ")[0]}

    on_head = on_get
