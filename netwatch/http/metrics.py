"""Counts the requests that were answered, and shows the metrics of all processes at ``/metrics``."""

from __future__ import annotations

import bisect
from typing import Any, Final

from falcon.asgi import Request, Response

from netwatch.http.access import Guard
from netwatch.metrics import table, text
from netwatch.metrics.board import Board, WorkerMeter

_OTHER: Final = "other"
_BOUNDS: Final = table.REQUEST_SECONDS.bounds


class Counting:
    """What a worker's connections count in ``meter``. It stands outside of Falcon, whose middleware costs 3 µs."""

    def __init__(self, meter: WorkerMeter) -> None:
        self._meter = meter
        self._places: dict[tuple[str, str, int, str], tuple[int, int]] = {}

    def answered(self, scope: dict[str, Any], status: int, now_ns: int) -> None:
        """Count an answer that was given just now, and how long it took since the request was there whole.

        In the request's state, ``code`` is that of its error, ``body_complete`` when it was whole. Times are monotonic.
        """
        state = scope["state"]
        key = (scope["path"], scope["method"], status, state.get("code", "ok"))
        count_at, first_at = self._places.get(key) or self._place(*key)
        cells = self._meter.cells
        cells[count_at] += 1
        if complete_at_ns := state.get("body_complete"):
            took_ns = now_ns - complete_at_ns
            cells[first_at + bisect.bisect_left(_BOUNDS, took_ns)] += 1
            cells[first_at + len(_BOUNDS) + 1] += took_ns

    def refused(self, status: int, code: str) -> None:
        """Count an answer to what was no request."""
        self._meter.add(table.REQUESTS, 1, (_OTHER, _OTHER, str(status), code))

    def connected(self, count: int) -> None:
        """So many connections are open now."""
        self._meter.set(table.CONNECTIONS, count)

    def _place(self, path: str, method: str, status: int, code: str) -> tuple[int, int]:
        """Where such requests and their durations are counted; remembered, but for what anybody can invent."""
        route = path if path in table.ROUTES else _OTHER
        known_method = method if method in table.METHODS else _OTHER
        labels = (route, known_method, str(status), code)
        if labels not in table.REQUESTS.series:
            labels = (route, known_method, _OTHER, _OTHER)
        counts, durations = table.REQUESTS, table.REQUEST_SECONDS
        place = (counts.first + counts.series[labels], durations.first + durations.series[(route,)])
        if (route, known_method) == (path, method):
            self._places[path, method, status, code] = place
        return place


class Metrics:
    """The resource ``/metrics``: whichever worker answers, it shows what all processes have counted."""

    def __init__(self, board: Board, guard: Guard) -> None:
        self._board = board
        self._guard = guard

    async def on_get(self, req: Request, resp: Response) -> None:
        """The text form, read by Prometheus."""
        self._guard(req, resp)
        resp.content_type = text.CONTENT_TYPE
        resp.data = text.render(self._board.read())

    on_head = on_get
