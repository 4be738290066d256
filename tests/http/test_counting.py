"""What becomes of each report is counted where it happens, in terms that always add up to what was received."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from netwatch.errors import Overloaded
from netwatch.http.metrics import Counting
from netwatch.metrics import table
from netwatch.metrics.board import WorkerMeter
from netwatch.queue import Stored
from tests.http.door import NDJSON, PATH, REPORT, Door, Exchange, until
from tests.http.serving import Client, post, serving
from tests.http.serving import until as until_

BAD = b'{"clientId":5,"hosts":[]}'
BODY = b"\n".join([REPORT, BAD, REPORT, REPORT])
KEY = {"idempotency-key": "k"}


def terms(door: Door) -> dict[str, int]:
    """Those that are not 0; they add up."""
    names = [metric.name.removeprefix("netwatch_reports_").removesuffix("_total") for metric in table.TERMS]
    values = dict(zip(names, door.meter.terms._values, strict=True))
    assert values["received"] == sum(values.values()) - values["received"], values
    return {name: value for name, value in values.items() if value}


def requests(door: Door) -> dict[tuple[str, ...], int]:
    """The requests that were counted, by route, method, status and code."""
    metric = table.REQUESTS
    counted = {labels: door.meter.cells[metric.first + offset] for labels, offset in metric.series.items()}
    return {labels: count for labels, count in counted.items() if count}


def figure(door: Door, metric: table.Metric, labels: tuple[str, ...] = ()) -> int:
    value: int = door.meter.cells[metric.first + metric.series[labels]]
    return value


def test_stored_and_rejected() -> None:
    door = Door()
    assert door.post(BODY, NDJSON).status_code == 200
    assert terms(door) == {"received": 4, "stored": 3, "rejected": 1}
    assert figure(door, table.REJECTIONS, ("invalid_member",)) == 1
    assert figure(door, table.BODY_BYTES) == len(BODY)


@pytest.mark.parametrize("accepted", [0, 1])
def test_duplicates(accepted: int) -> None:
    door = Door()
    door.link.result = Stored(accepted, "0193a5b0-0000-7000-8000-000000000000")
    assert door.post(BODY, NDJSON, headers=KEY).status_code == 200
    stored = {"stored": accepted} if accepted else {}
    assert terms(door) == {"received": 4, "duplicate": 3 - accepted, "rejected": 1, **stored}


def test_only_bad_ones() -> None:
    door = Door()
    assert door.post(BAD).status_code == 400
    assert terms(door) == {"received": 1, "rejected": 1}


@pytest.mark.parametrize("may_be_stored", [False, True])
def test_what_the_writer_refuses_is_shed_unless_it_may_be_stored_all_the_same(may_be_stored: bool) -> None:
    door = Door()
    door.link.refusal = Overloaded("disk_full", "Later.", may_be_stored=may_be_stored)
    assert door.post(BODY, NDJSON).status_code == 503
    assert terms(door) == {"received": 4, "unknown" if may_be_stored else "shed": 3, "rejected": 1}


def test_a_fault_of_ours_leaves_it_unknown() -> None:
    door = Door()
    door.link.refusal = ZeroDivisionError()
    assert door.post(BODY, NDJSON).status_code == 500
    assert terms(door) == {"received": 4, "unknown": 3, "rejected": 1}


@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b"\xff"])
def test_what_was_not_taken_apart_counts_as_a_request_only(body: bytes) -> None:
    door = Door()
    assert door.post(body).status_code == 400
    assert terms(door).keys() <= {"received", "rejected"}


def test_what_is_in_flight_and_a_client_that_does_not_wait() -> None:
    async def main() -> None:
        door = Door()
        door.link.is_holding = True
        exchange = Exchange(door, [BODY], kind=NDJSON, size=len(BODY))
        task = asyncio.create_task(exchange.run())
        await until(lambda: door.link.held)
        assert terms(door) == {"received": 4, "in_flight": 4}
        assert figure(door, table.IN_FLIGHT_BYTES) == len(BODY)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert terms(door) == {"received": 4, "unknown": 3, "rejected": 1}
        assert figure(door, table.IN_FLIGHT_BYTES) == 0
        assert figure(door, table.IN_FLIGHT_LIMIT_BYTES) == door.settings.worker_in_flight_bytes

    asyncio.run(main())


def test_browser_reports_that_are_not_kept_are_rejected_as_ignored() -> None:
    door = Door(kept_kinds=("csp-violation",))
    one = b'{"age":1,"type":"%s","url":"https://a/","user_agent":"u","body":{}}'
    body = b"[" + b",".join([one % b"csp-violation", one % b"crash", one % b"crash", b"1"]) + b"]"
    headers = {"content-type": "application/reports+json"}
    assert door.request("POST", "/api/v1/browser-reports", body=body, headers=headers).status_code == 204
    assert terms(door) == {"received": 4, "stored": 1, "rejected": 3}
    assert figure(door, table.REJECTIONS, ("kind_ignored",)) == 2


def test_a_report_with_which_the_whole_request_falls_is_rejected() -> None:
    door = Door()
    headers = {"content-type": "application/csp-report"}
    assert door.request("POST", "/api/v1/browser-reports", body=b'{"csp-report":', headers=headers).status_code == 400
    assert terms(door) == {"received": 1, "rejected": 1}


def counted(path: str, method: str, status: int, code: str | None = None) -> dict[tuple[str, ...], int]:
    """Where two requests of the kind are counted."""
    door = Door()
    counting = Counting(door.meter)
    state: dict[str, Any] = {"body_complete": time.monotonic_ns() - 2_000_000}
    if code:
        state["code"] = code
    for _ in range(2):
        counting.answered({"path": path, "method": method, "state": state}, status, time.monotonic_ns())
    route = path if path in table.ROUTES else "other"
    first = table.REQUEST_SECONDS.first + table.REQUEST_SECONDS.series[(route,)]
    durations = door.meter.cells[first : first + table.REQUEST_SECONDS.width].tolist()
    assert sum(durations[:-1]) == 2
    assert durations[0] == 0
    assert durations[-1] >= 2 * 2_000_000
    return requests(door)


@pytest.mark.parametrize(
    ("request_", "labels"),
    [
        ((PATH, "POST", 200), (PATH, "POST", "200", "ok")),
        ((PATH, "POST", 400, "invalid_member"), (PATH, "POST", "400", "invalid_member")),
        (("/readyz", "GET", 503, "not_ready"), ("/readyz", "GET", "503", "not_ready")),
        (("/coffee", "BREW", 404, "not_found"), ("other", "other", "404", "not_found")),
        (("/livez", "GET", 299), ("/livez", "GET", "other", "other")),
    ],
)
def test_requests_are_counted_by_route_method_status_and_code(request_: Any, labels: tuple[str, ...]) -> None:
    assert counted(*request_) == {labels: 2}


def test_what_clients_invent_is_not_remembered() -> None:
    counting = Counting(WorkerMeter())
    for number in range(100):
        counting.answered({"path": f"/{number}", "method": f"M{number}", "state": {}}, 404, 0)
    assert not counting._places


def test_the_state_says_by_which_code_a_request_is_counted() -> None:
    states: list[dict[str, Any]] = [{}, {}, {}, {}]
    door = Door()
    door.post(REPORT, state=states[0])
    door.post(BAD, state=states[1])
    door.request("GET", "/nothing", state=states[2])
    door.link.code = "disk_full"
    door.request("GET", "/readyz", state=states[3])
    assert [state.get("code") for state in states] == [None, "invalid_member", "not_found", "not_ready"]


def test_a_connection_counts_its_requests_and_what_is_none() -> None:
    meter = WorkerMeter()
    with serving(max_connections=1) as served:
        served.server.lifespan.state["counting"] = Counting(meter)
        client = Client(served)
        client.send(post(b"x", "/livez") * 2)
        assert [client.answer().status for _ in range(2)] == [200, 200]
        until_(lambda: meter.cells[table.CONNECTIONS.first] == 1)
        other = Client(served)
        assert other.answer().status == 503
        client.send(b"GARBAGE\r\n\r\n")
        assert client.answer().status == 400
        served.hang_up()
        until_(lambda: meter.cells[table.CONNECTIONS.first] == 0)
    found = {labels: meter.cells[table.REQUESTS.first + at] for labels, at in table.REQUESTS.series.items()}
    assert {labels: count for labels, count in found.items() if count} == {
        ("/livez", "POST", "200", "ok"): 2,
        ("other", "other", "503", "too_many_connections"): 1,
        ("other", "other", "400", "bad_request"): 1,
    }
