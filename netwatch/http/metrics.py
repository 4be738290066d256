"""Counts the requests that were answered, and shows the metrics of all processes at ``/metrics``."""

from __future__ import annotations

import time
from typing import Any

from falcon.asgi import Request, Response

from netwatch.http.access import Guard
from netwatch.metrics import table, text
from netwatch.metrics.board import Board, WorkerMeter

_ROUTES = frozenset(table.ROUTES)
_METHODS = frozenset(table.METHODS)
_OTHER = "other"


class Counting:
    """Falcon's middleware that counts each answer. An error's code is what ``resp.context.code`` says."""

    def __init__(self, meter: WorkerMeter) -> None:
        self._meter = meter

    async def process_response(self, req: Request, resp: Response, _resource: object, _is_success: bool) -> None:
        """Count it, and how long it took since the request was there whole."""
        status = resp.status_code
        route = req.uri_template
        if route not in _ROUTES:
            route = _OTHER
        method = req.method if req.method in _METHODS else _OTHER
        labels = (route, method, str(status), "ok" if status < 300 else getattr(resp.context, "code", _OTHER))
        if labels not in table.REQUESTS.series:
            labels = (route, method, _OTHER, _OTHER)
        self._meter.add(table.REQUESTS, 1, labels)
        if complete_at_ns := req.scope.get("state", {}).get("body_complete"):
            took_ns = time.monotonic_ns() - complete_at_ns
            self._meter.observe(table.REQUEST_SECONDS, took_ns, (route,))


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


def count_refused(state: dict[str, Any], status: int, code: str) -> None:
    """Count an answer to what was no request; ``state`` is the application's, where the worker put its meter."""
    meter: WorkerMeter | None = state.get("meter")
    if meter:
        meter.add(table.REQUESTS, 1, (_OTHER, _OTHER, str(status), code))


def count_connections(state: dict[str, Any], count: int) -> None:
    """So many connections are open now."""
    meter: WorkerMeter | None = state.get("meter")
    if meter:
        meter.set(table.CONNECTIONS, count)
