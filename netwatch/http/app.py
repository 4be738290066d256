"""Routes and error handlers: pure wiring, the link and the settings are handed in."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from netwatch import log
from netwatch.errors import ERRORS, Refused
from netwatch.http.access import Guard
from netwatch.http.health import Livez, Readyz, Version, Watched
from netwatch.http.ingest import BrowserReports, Door, Reports, Storing
from netwatch.http.metrics import Metrics
from netwatch.http.openapi import OpenApi
from netwatch.http.problem import PROBLEM_TYPE, problem
from netwatch.http.request_log import Refusals, route
from netwatch.metrics.board import Board, WorkerMeter
from netwatch.reports import new_id
from netwatch.settings import Settings

_CODES = {404: "not_found", 405: "method_not_allowed", 500: "internal"}


App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class WorkerLink(Storing, Watched, Protocol):
    """The link as the door sees it."""


def create_app(
    link: WorkerLink,
    settings: Settings,
    board: Board,
    meter: WorkerMeter,
    refusals: Refusals,
    middleware: Iterable[Any] = (),
) -> falcon.asgi.App[Any, Any]:
    """The whole door as an ASGI application, which counts in ``meter`` and shows ``board``."""
    app = falcon.asgi.App(middleware=[refusals, *middleware])
    door = Door(link, settings, meter)
    app.add_route("/api/v1/reports", Reports(door))
    app.add_route("/api/v1/browser-reports", BrowserReports(door))
    _add_health(app, link, settings, board, refusals, None if settings.admin_bind else door.access.admit)
    return app


def create_admin_app(
    link: WorkerLink, settings: Settings, board: Board, refusals: Refusals
) -> falcon.asgi.App[Any, Any]:
    """What is served at the setting ``admin_bind``: health and details, to whoever can connect, and no reports."""
    app = falcon.asgi.App()
    _add_health(app, link, settings, board, refusals, _let_in)
    return app


def split_app(public: App, admin: App, host: str, port: int) -> App:
    """``admin`` for what came in at that address, ``public`` for the rest; two sockets never share an address."""
    is_any_host = ipaddress.ip_address(host).is_unspecified

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        server = scope.get("server")
        is_admin = server and server[1] == port and (is_any_host or server[0] == host)
        await (admin if is_admin else public)(scope, receive, send)

    return app


def _let_in(_req: Request, _resp: Response) -> None:
    """Who can connect may see this."""


def _add_health(
    app: falcon.asgi.App[Any, Any],
    link: WorkerLink,
    settings: Settings,
    board: Board,
    refusals: Refusals,
    guard: Guard | None,
) -> None:
    """Health for everybody, details for whom ``guard`` lets in, for nobody without one."""
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(link, board, guard))
    if guard:
        app.add_route("/openapi.json", OpenApi(settings, guard))
        app.add_route("/metrics", Metrics(board, guard))
        app.add_route("/version", Version(guard))
    answers = _Answers(refusals)
    app.add_error_handler(Exception, _on_failure)
    app.add_error_handler(falcon.HTTPError, answers.on_http_error)
    app.add_error_handler(Refused, answers.on_refused)


class _Answers:
    """What a client gets when its request fails."""

    def __init__(self, refusals: Refusals) -> None:
        self._refuse = refusals.refuse

    async def on_refused(self, req: Request, resp: Response, error: Refused, _params: object) -> None:
        for name, value in error.headers.items():
            resp.set_header(name, value)
        _answer(req, resp, error.code, error.detail, self._refuse(error.code, error.detail, req.path), error.members)

    async def on_http_error(self, req: Request, resp: Response, error: falcon.HTTPError, _params: object) -> None:
        code = _CODES.get(error.status_code, "bad_request")
        detail = error.description or f"{ERRORS[code][1]}."
        if error.headers:
            resp.set_headers(error.headers)
        _answer(req, resp, code, detail, self._refuse(code, detail, req.path))


async def _on_failure(req: Request, resp: Response, error: Exception, _params: object) -> None:
    request_id = new_id(time.time_ns())
    log.error("request_failed", id=request_id, route=route(req.path), error=repr(error))
    _answer(req, resp, "internal", "This is a fault of the server; its log says more.", request_id)


def _answer(
    req: Request,
    resp: Response,
    code: str,
    detail: str,
    request_id: str,
    members: dict[str, object] | None = None,
) -> None:
    req.scope.setdefault("state", {})["code"] = code  # which the request is counted by
    resp.status = ERRORS[code][0]
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(code, detail, members, instance=request_id)
