"""Routes and error handlers: pure wiring, the link and the settings are handed in."""

from __future__ import annotations

import time
from typing import Any, Protocol

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from netwatch import log
from netwatch.errors import ERRORS, Refused
from netwatch.http.health import Livez, Readyz, Watched
from netwatch.http.ingest import BrowserReports, Door, Reports, Storing
from netwatch.http.openapi import OpenApi
from netwatch.http.problem import PROBLEM_TYPE, problem
from netwatch.http.request_log import Refusals
from netwatch.reports import new_id
from netwatch.settings import Settings

_CODES = {404: "not_found", 405: "method_not_allowed", 500: "internal"}


class WorkerLink(Storing, Watched, Protocol):
    """The link as the door sees it."""


def create_app(link: WorkerLink, settings: Settings, middleware: Any = ()) -> falcon.asgi.App[Any, Any]:
    """The whole door as an ASGI application."""
    refusals = Refusals()
    app = falcon.asgi.App(middleware=[refusals, *middleware])
    door = Door(link, settings)
    app.add_route("/api/v1/reports", Reports(door))
    app.add_route("/api/v1/browser-reports", BrowserReports(door))
    app.add_route("/openapi.json", OpenApi(settings))
    app.add_route("/livez", Livez())
    app.add_route("/readyz", Readyz(link))
    answers = _Answers(refusals)
    app.add_error_handler(Exception, _on_failure)
    app.add_error_handler(falcon.HTTPError, answers.on_http_error)
    app.add_error_handler(Refused, answers.on_refused)
    return app


class _Answers:
    """What a client gets when its request fails."""

    def __init__(self, refusals: Refusals) -> None:
        self._refuse = refusals.refuse

    async def on_refused(self, req: Request, resp: Response, error: Refused, _params: object) -> None:
        for name, value in error.headers.items():
            resp.set_header(name, value)
        _answer(resp, error.code, error.detail, self._refuse(error.code, error.detail, req.path), error.members)

    async def on_http_error(self, req: Request, resp: Response, error: falcon.HTTPError, _params: object) -> None:
        code = _CODES.get(error.status_code, "bad_request")
        detail = error.description or f"{ERRORS[code][1]}."
        if error.headers:
            resp.set_headers(error.headers)
        _answer(resp, code, detail, self._refuse(code, detail, req.path))


async def _on_failure(req: Request, resp: Response, error: Exception, _params: object) -> None:
    request_id = new_id(time.time_ns())
    log.error("request_failed", id=request_id, path=req.path, error=repr(error))
    _answer(resp, "internal", "This is a fault of the server; its log says more.", request_id)


def _answer(
    resp: Response,
    code: str,
    detail: str,
    request_id: str,
    members: dict[str, object] | None = None,
) -> None:
    resp.status = ERRORS[code][0]
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(code, detail, members, instance=request_id)
