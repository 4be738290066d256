from __future__ import annotations

import json

import falcon.testing
import pytest

from netwatch.errors import ERRORS
from netwatch.http.app import create_app
from netwatch.http.problem import problem
from netwatch.http.request_log import Refusals
from netwatch.metrics.board import Board, WorkerMeter
from netwatch.settings import Settings
from tests.http.door import PATH, REPORT, Door, FakeLink, code_of, problem_of


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", "/api/v1/reports/", "/api/v1/reports/x", "/api/v2/reports", "/LIVEZ", "*"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_an_unknown_path_is_404_for_every_method(method: str, path: str) -> None:
    result = Door().request(method, path if path.startswith("/") else "/" + path)
    assert result.status_code == 404
    assert method == "HEAD" or code_of(result) == "not_found"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (PATH, {"POST"}),
        ("/livez", {"GET", "HEAD"}),
        ("/readyz", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS"])
def test_a_method_that_is_not_taken_is_405_with_those_that_are(method: str, path: str, allowed: set[str]) -> None:
    door = Door()
    result = door.request(method, path, body=REPORT)
    if method in allowed:
        assert result.status_code == 200
        return
    if (method, path) == ("OPTIONS", PATH):
        assert (result.status_code, result.content, result.headers["allow"]) == (204, b"", "OPTIONS, POST")
        return
    assert set(result.headers["allow"].split(", ")) | {"OPTIONS"} == {*allowed, "OPTIONS"}
    if method == "OPTIONS":
        assert (result.status_code, result.content) == (200, b"")
    else:
        assert result.status_code == 405
        assert method == "HEAD" or code_of(result) == "method_not_allowed"
    assert door.link.stored == []


def test_a_query_is_no_harm() -> None:
    assert Door().request("POST", PATH, body=REPORT, query_string="a=%ff&b=<script>&a").status_code == 200


@pytest.mark.parametrize("code", ERRORS)
def test_a_problem_document_has_what_rfc_9457_asks_for(code: str) -> None:
    status, title = ERRORS[code]
    document = json.loads(problem(code, "Do this.", {"limit": 5}))
    assert document == {
        "type": f"urn:netwatch:error:{code}",
        "title": title,
        "status": status,
        "detail": "Do this.",
        "limit": 5,
    }


def test_errors_of_falcon_take_our_form() -> None:
    class Failing:
        async def on_get(self, _req: object, _resp: object) -> None:
            raise falcon.HTTPBadRequest(description="Not so.")

        async def on_put(self, _req: object, _resp: object) -> None:
            raise falcon.HTTPServiceUnavailable(retry_after=5)

    app = create_app(FakeLink(), Settings(workers=1), Board(), WorkerMeter(), Refusals())
    app.add_route("/failing", Failing())
    client = falcon.testing.TestClient(app)
    result = client.simulate_get("/failing")
    assert (result.status_code, code_of(result), problem_of(result)["detail"]) == (400, "bad_request", "Not so.")


def test_a_content_length_that_is_no_number_is_400() -> None:
    result = Door().request("POST", PATH, headers={"content-length": "x", "content-type": "application/json"})
    assert (result.status_code, code_of(result)) == (400, "bad_request")


def test_middleware_is_handed_on() -> None:
    class Named:
        async def process_response(
            self, _req: object, resp: falcon.asgi.Response, _resource: object, _req_succeeded: bool
        ) -> None:
            resp.set_header("x-seen", "1")

    app = create_app(FakeLink(), Settings(workers=1), Board(), WorkerMeter(), Refusals(), [Named()])
    assert falcon.testing.TestClient(app).simulate_get("/livez").headers["x-seen"] == "1"
