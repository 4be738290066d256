"""What a worker logs of requests: the first refusal of a kind and then their number, slow ones, and a sample of all.

A request has one id, in its answer and here: its first stored report's, or the ``instance`` of a problem document. No
query, header or body is ever logged, so no token is.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

from falcon.asgi import Request, Response

from netwatch import log
from netwatch.errors import ERRORS
from netwatch.reports import new_id

PERIOD_S: Final = 60.0
"""Refusals of a kind are summed up so often."""
_OPERATORS: Final = (401, 403, 429)
"""These, and those from 500 on, an operator should look at; the others are the clients' own."""
_NO_STATE: Final[dict[str, float]] = {}
_ID_START: Final = b'{"id":"'


class Refusals:
    """Logs the first refusal of a kind (a code) at once, and sums up those that follow."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._counts: dict[str, int] = {}

    async def process_startup(self, scope: dict[str, Any], _event: dict[str, Any]) -> None:
        """Have the protocol's own refusals counted too."""
        scope.setdefault("state", {})["refuse"] = self.refuse

    async def process_shutdown(self, _scope: dict[str, Any], _event: dict[str, Any]) -> None:
        """Sum up what is left."""
        for code in list(self._counts):
            self._sum_up(code)

    def refuse(self, code: str, detail: str, path: str = "") -> str:
        """One more: its id."""
        request_id = new_id(time.time_ns())
        if code in self._counts:
            self._counts[code] += 1
        else:
            self._counts[code] = 0
            _log(code)("request_refused", code=code, status=ERRORS[code][0], detail=detail, path=path, id=request_id)
            asyncio.get_running_loop().call_later(self._period_s, self._on_period, code)
        return request_id

    def _on_period(self, code: str) -> None:
        if self._counts.get(code):
            self._sum_up(code)
            self._counts[code] = 0
            asyncio.get_running_loop().call_later(self._period_s, self._on_period, code)
        else:  # the next one is a first one again
            self._counts.pop(code, None)

    def _sum_up(self, code: str) -> None:
        if count := self._counts.pop(code):
            _log(code)("requests_refused", code=code, status=ERRORS[code][0], requests=count, within_s=self._period_s)


def _log(code: str) -> Any:
    status, _ = ERRORS[code]
    return log.warning if status >= 500 or status in _OPERATORS else log.info


class RequestLog:
    """Logs requests that take longer than ``slow_s`` (0: none) and ``sample`` (0 to 1) of all."""

    def __init__(self, slow_s: float, sample: float) -> None:
        self._slow_s = slow_s or float("inf")
        self._sample = sample

    async def process_response(self, req: Request, resp: Response, _resource: object, _is_done: bool) -> None:
        """Look at a request whose answer is made."""
        took_s = time.monotonic() - req.scope.get("state", _NO_STATE).get("began_s", float("inf"))
        if took_s >= self._slow_s:
            log.warning("request_slow", **_members(req, resp, took_s))
        elif self._sample and random.random() < self._sample:
            log.info("request", **_members(req, resp, took_s))


def _members(req: Request, resp: Response, took_s: float) -> dict[str, object]:
    state = req.scope["state"]  # which a request that took some time has
    data = resp.data or b""
    stored_id = data[len(_ID_START) : len(_ID_START) + 36].decode() if data.startswith(_ID_START) else None
    return {
        "id": getattr(req.context, "id", stored_id),
        "method": req.method,
        "path": req.path,
        "status": resp.status_code,
        "took_s": round(took_s, 6),
        "body_s": round(state["whole_s"] - state["began_s"], 6) if "whole_s" in state else None,
        "size_bytes": req.content_length,
    }
