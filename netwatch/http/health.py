"""``/livez`` and ``/readyz``: whether this worker answers, and whether a report sent now would be stored."""

from __future__ import annotations

from typing import Final, Protocol

from falcon.asgi import Request, Response

MAX_WAIT_S: Final = 3.0
"""Not ready when a batch has waited this long for its ack, or the writer has shown no life for so long."""

_REASONS: Final = {
    "ack_timeout": "a batch has waited too long for its ack",
    "writer_away": "the writer is away",
    "disk_full": "the disk is below its reserve",
    "disk_error": "the disk fails",
    "recovering": "the writer is still recovering what a crash left",
    "draining": "this server drains",
}


class Watched(Protocol):
    """What is asked of the link."""

    def trouble(self, max_wait_s: float) -> str | None:
        """See :meth:`netwatch.queue.Link.trouble`."""


class Livez:
    """The resource ``/livez``."""

    async def on_get(self, req: Request, resp: Response) -> None:
        """This worker answers."""
        resp.media = {"status": "ok"}

    on_head = on_get  # which some monitors send


class Readyz:
    """The resource ``/readyz``."""

    def __init__(self, link: Watched) -> None:
        self._link = link

    async def on_get(self, req: Request, resp: Response) -> None:
        """200, or 503 with the reasons."""
        codes = [self._link.trouble(MAX_WAIT_S), "draining" if req.scope["state"].get("draining") else None]
        reasons = [{"code": code, "detail": _REASONS.get(code, code)} for code in codes if code]
        resp.media = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        if reasons:
            resp.status = 503
            resp.set_header("Retry-After", "1")

    on_head = on_get
