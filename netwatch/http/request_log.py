"""What a worker logs of requests: the first refusal of a kind and then their number, slow ones, and a sample of all.

A request has one id, in its answer and here: its first stored report's, or the ``instance`` of a problem document. No
path that is not ours, no query, header or body is ever logged, so no token is.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Any, Final

from netwatch import log
from netwatch.errors import ERRORS
from netwatch.http.cycle import Cycle
from netwatch.metrics.table import ROUTES
from netwatch.reports import new_id
from netwatch.settings import Settings

PERIOD_S: Final = 60.0
"""Refusals of a kind are summed up so often."""
_OPERATORS: Final = (401, 403, 429)
"""These, and those from 500 on, an operator should look at; the others are the clients' own."""
_ID: Final = re.compile(rb'(?:^{"id":"|"instance":"urn:uuid:)([0-9a-f-]{36})"')


def route(path: str) -> str:
    """The path as it may be logged: of one that is not ours nobody knows what is in it."""
    return path if path in ROUTES else "other"


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
            _log(code)(
                "request_refused", code=code, status=ERRORS[code][0], detail=detail, route=route(path), id=request_id
            )
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
    """Logs requests that take longer than ``slow_s`` and the share ``sample`` (0 to 1) of the others."""

    def __init__(self, slow_s: float, sample: float) -> None:
        self._slow_ns = slow_s * 1e9
        self._sample = sample

    @classmethod
    def of(cls, settings: Settings) -> RequestLog | None:
        """What the settings ask for; None for nothing."""
        if not settings.slow_request_s and not settings.access_log_sample:
            return None
        return cls(settings.slow_request_s or float("inf"), settings.access_log_sample)

    def look(self, cycle: Cycle, status: int, body: bytes, now_ns: int) -> None:
        """Look at a request that was answered just now (monotonic) with ``status`` and ``body``."""
        if now_ns - cycle.began_ns >= self._slow_ns:
            log.warning("request_slow", **_members(cycle, status, body, now_ns))
        elif self._sample and random.random() < self._sample:
            log.info("request", **_members(cycle, status, body, now_ns))


def _members(cycle: Cycle, status: int, body: bytes, now_ns: int) -> dict[str, object]:
    found = _ID.search(body)
    whole_ns = cycle.scope["state"].get("body_complete")
    return {
        "id": found[1].decode() if found else None,
        "method": cycle.scope["method"],
        "route": route(cycle.scope["path"]),
        "status": status,
        "took_s": round((now_ns - cycle.began_ns) / 1e9, 3),
        "body_s": round((whole_ns - cycle.began_ns) / 1e9, 3) if whole_ns else None,
    }
