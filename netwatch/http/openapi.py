"""``/openapi.json``: the door in OpenAPI 3.1, its schemas made from the types that decode and answer requests."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from falcon.asgi import Request, Response

from netwatch import __version__
from netwatch.errors import ERRORS
from netwatch.http import body, encoding
from netwatch.http.access import Guard
from netwatch.reports import BrowserReport, CspReport, Report
from netwatch.settings import Settings


class Error(msgspec.Struct):
    """What is wrong with one report."""

    index: int
    code: str
    pointer: str
    detail: str


class Answer(msgspec.Struct):
    """The answer to reports that are stored."""

    id: str | None
    accepted: int
    duplicates: int
    rejected: int
    durability: str
    errors: list[Error]


class Problem(msgspec.Struct):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


_WAYS_TO_GIVE_A_TOKEN: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token is the password."},
    "query": {"type": "apiKey", "in": "query", "name": "token", "description": "For beacons, which have no headers."},
}
_REFUSALS: Final = (400, 401, 403, 413, 415, 429, 500, 503)


def document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a door with these settings."""
    _, schemas = msgspec.json.schema_components(
        (Report, BrowserReport, CspReport, Answer, Problem), ref_template="#/components/schemas/{name}"
    )
    problems = {str(status): _problem(status) for status in _REFUSALS}
    ways = _WAYS_TO_GIVE_A_TOKEN if settings.tokens else {}
    components: dict[str, Any] = {"schemas": schemas, "securitySchemes": ways}
    encodings = {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"type": "string", "enum": list(encoding.TAKEN)},
    }
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A retry under the same key stores nothing again. Use random keys.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "netwatch", "version": __version__},
        "components": components,
        "security": [{name: []} for name in ways],
        "paths": {
            "/api/v1/reports": {
                "post": {
                    "operationId": "postReports",
                    "summary": "Store reports; they are safe when this answers 200.",
                    "parameters": [encodings, key],
                    "requestBody": _body([Report], body.JSON, body.NDJSON),
                    "responses": {"200": _content("Stored", "application/json", _ref(Answer)), **problems},
                }
            },
            "/api/v1/browser-reports": {
                "post": {
                    "operationId": "postBrowserReports",
                    "summary": "Store what a browser's Reporting API sends.",
                    "parameters": [encodings],
                    "requestBody": _body([BrowserReport, CspReport], body.BROWSER, frozenset()),
                    "responses": {
                        "204": {"description": "Taken; what is invalid or of a kind that is not kept is ignored"},
                        **problems,
                        "410": _problem(410),
                    },
                }
            },
            "/livez": {
                "get": {
                    "operationId": "livez",
                    "security": [],
                    "responses": {"200": _content("Up", "application/json", {})},
                }
            },
            "/readyz": {
                "get": {
                    "operationId": "readyz",
                    "security": [],
                    "responses": {
                        "200": _content("A report sent now would be stored", "application/json", {}),
                        "503": _content("It would not; see reasons", "application/json", {}),
                    },
                }
            },
        },
    }


def _ref(shape: type) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _content(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _problem(status: int) -> dict[str, Any]:
    codes = ", ".join(code for code, (of, _) in ERRORS.items() if of == status)
    return _content(f"Codes: {codes}", "application/problem+json", _ref(Problem))


def _body(shapes: list[type], json_types: frozenset[str], line_types: frozenset[str]) -> dict[str, Any]:
    one = {"oneOf": [_ref(shape) for shape in shapes]}
    content: dict[str, Any] = {
        kind: {"schema": {"oneOf": [one, {"type": "array", "items": one}]}} for kind in sorted(json_types)
    }
    content.update({kind: {"schema": {"type": "string"}} for kind in sorted(line_types)})
    return {"required": True, "content": content}


class OpenApi:
    """The resource ``/openapi.json``."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        self._guard = guard
        self._document = msgspec.json.encode(document(settings))

    async def on_get(self, req: Request, resp: Response) -> None:
        """The document."""
        self._guard(req, resp)
        resp.content_type = "application/json"
        resp.data = self._document

    on_head = on_get
