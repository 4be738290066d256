"""Routes and error handlers: pure wiring, the link and the settings are handed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from netwatch import log
from netwatch.errors import ERRORS, Refused
from netwatch.http.health import Livez, Readyz, Version, Watched
from netwatch.http.ingest import BrowserReports, Door, Reports, Storing
from netwatch.http.metrics import Counting, Metrics
from netwatch.http.openapi import OpenApi
from netwatch.http.problem import PROBLEM_TYPE, problem
from netwatch.metrics.board import Board, WorkerMeter
from netwatch.settings import Settings

_CODES = {404: "not_found", 405: "method_not_allowed", 500: "internal"}


class WorkerLink(Storing, Watched, Protocol):
    """The link as the door sees it."""


def create_app(
    link: WorkerLink, settings: Settings, board: Board, meter: WorkerMeter, middleware: Iterable[Any] = ()
) -> falcon.asgi.App[Any, Any]:
    """The whole door as an ASGI application, which counts in ``meter`` and shows ``board``."""
    app = falcon.asgi.App(middleware=[*middleware, Counting(meter)])
    door = Door(link, settings, meter)
    guard = door.access.admit
    app.add_route("/api/v1/reports", Reports(door))
    app.add_route("/api/v1/browser-reports", BrowserReports(door))
    app.add_route("/openapi.json", OpenApi(settings, guard))
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(link, board, guard))
    app.add_route("/metrics", Metrics(board, guard))
    app.add_route("/version", Version(guard))
    app.add_error_handler(Exception, _on_failure)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(Refused, _on_refused)
    return app


async def _on_refused(_req: Request, resp: Response, error: Refused, _params: object) -> None:
    for name, value in error.headers.items():
        resp.set_header(name, value)
    _answer(resp, error.code, error.detail, error.members)


async def _on_http_error(_req: Request, resp: Response, error: falcon.HTTPError, _params: object) -> None:
    code = _CODES.get(error.status_code, "bad_request")
    if error.headers:
        resp.set_headers(error.headers)
    _answer(resp, code, error.description or f"{ERRORS[code][1]}.")


async def _on_failure(req: Request, resp: Response, error: Exception, _params: object) -> None:
    log.error("request_failed", path=req.path, error=repr(error))
    _answer(resp, "internal", "This is a fault of the server; its log says more.")


def _answer(resp: Response, code: str, detail: str, members: dict[str, object] | None = None) -> None:
    resp.status = ERRORS[code][0]
    resp.context.code = code
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(code, detail, members)
