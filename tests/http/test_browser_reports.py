from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import falcon.testing
import pytest

from netwatch.http import body
from netwatch.metrics import table
from netwatch.reports import is_whole
from tests.http.door import Door, Exchange, code_of

PATH = "/api/v1/browser-reports"
NEL = {
    "age": 60_000,
    "type": "network-error",
    "url": "https://www.example.com/",
    "user_agent": "Mozilla/5.0",
    "body": {
        "sampling_fraction": 0.5,
        "elapsed_time": 143,
        "phase": "dns",
        "type": "dns.name_not_resolved",
        "server_ip": "",
        "protocol": "http/1.1",
        "referrer": "",
        "method": "GET",
        "status_code": 0,
    },
}
CSP = {"csp-report": {"document-uri": "https://www.example.com/", "violated-directive": "img-src", "age": 5}}


def post(door: Door, sent: object, kind: str = "application/reports+json") -> falcon.testing.Result:
    data = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    return door.request("POST", PATH, body=data, headers={"content-type": kind})


def stored(door: Door) -> list[dict[str, Any]]:
    lines = [line for lines in door.link.stored for line in lines.splitlines()]
    assert all(map(is_whole, lines))
    return [json.loads(line) for line in lines]


def time_of(text: str) -> datetime.datetime:
    assert len(text) == 27
    return datetime.datetime.fromisoformat(text)


@pytest.mark.parametrize("kind", sorted(body.BROWSER))
@pytest.mark.parametrize("form", ["{}", "{}; charset=utf-8", "upper"])
def test_each_media_type_of_browsers_is_taken(kind: str, form: str) -> None:
    door = Door()
    assert post(door, [NEL], kind.upper() if form == "upper" else form.format(kind)).status_code == 204
    assert len(stored(door)) == 1


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-ndjson", "text/html"])
def test_another_media_type_is_415(kind: str) -> None:
    door = Door()
    result = post(door, [NEL], kind)
    assert (result.status_code, code_of(result), result.json["taken"]) == (
        415,
        "unsupported_media_type",
        sorted(body.BROWSER),
    )
    assert door.link.stored == []


def test_an_array_is_stored_whole_each_with_its_kind_and_when_it_happened() -> None:
    door = Door()
    sent = [NEL, {**NEL, "type": "deprecation", "age": 0}, {**NEL, "type": "no such type", "age": 1.5, "more": [1]}]
    result = post(door, sent)
    assert (result.status_code, result.content) == (204, b"")
    assert len(door.link.stored) == 1
    lines = stored(door)
    assert [line["report"] for line in lines] == sent
    assert [line["kind"] for line in lines] == ["network-error", "deprecation", "no such type"]
    for line, age_ms in zip(lines, (60_000, 0, 1.5), strict=True):
        age = time_of(line["receivedAt"]) - time_of(line["generatedAt"])
        assert age == datetime.timedelta(milliseconds=age_ms)
        assert list(line) == ["id", "receivedAt", "generatedAt", "kind", "server", "report", "crc"]


def test_one_report_without_an_array_is_taken() -> None:
    door = Door()
    assert post(door, NEL, "application/report").status_code == 204
    assert [line["report"] for line in stored(door)] == [NEL]


def test_a_csp_report_of_an_older_browser_is_a_csp_violation_of_now() -> None:
    door = Door()
    assert post(door, CSP, "application/csp-report").status_code == 204
    (line,) = stored(door)
    assert (line["kind"], line["report"]) == ("csp-violation", CSP)
    assert line["generatedAt"] == line["receivedAt"]


@pytest.mark.parametrize(
    "bad",
    [
        1,
        None,
        "x",
        [],
        {},
        {"type": "x"},
        {**NEL, "type": ""},
        {**NEL, "type": 5},
        {**NEL, "type": "x" * 101},
        {**NEL, "age": -1},
        {**NEL, "age": "1"},
        {**NEL, "age": 1e13},
        {**NEL, "url": 5},
        {**NEL, "body": 1 << 70},
        {"csp-report": []},
    ],
)
def test_a_bad_report_is_204_and_the_others_are_stored(bad: object) -> None:
    door = Door()
    assert post(door, [NEL, bad, NEL]).status_code == 204
    assert [line["report"] for line in stored(door)] == [NEL, NEL]
    assert post(door, [bad]).status_code == 204
    assert len(stored(door)) == 2


def test_a_report_that_is_too_deep_or_too_large_is_204() -> None:
    door = Door(max_depth=8, max_report_bytes=2048)
    deep = b'[{"type":"x","body":%b}]' % (b"[" * 9 + b"]" * 9)
    assert post(door, deep).status_code == 204
    assert post(door, [{"type": "x", "body": "x" * 3000}]).status_code == 204
    assert door.link.stored == []


def test_an_empty_array_is_204() -> None:
    door = Door()
    assert post(door, []).status_code == 204
    assert door.link.stored == []


@pytest.mark.parametrize(
    "sent", [b"", b"x", b"1", b"[", b"{", b'[{"type":"x","body":}]', b"[1]]", b'{"type":"x"', b'"x"']
)
def test_what_is_no_json_of_the_right_shape_is_400(sent: bytes) -> None:
    door = Door()
    result = post(door, sent)
    code = "invalid_json" if sent else "empty_body"
    assert (result.status_code, code_of(result)) == (400, code)
    assert door.link.stored == []
    series = table.REJECTIONS.first + table.REJECTIONS.series[("invalid_json",)]
    rejected = door.meter.terms._values[table.TERMS.index(table.REJECTED)]
    assert door.meter.cells[series] == rejected  # says why


def test_only_the_kinds_that_are_kept_are_stored_and_all_are_204() -> None:
    door = Door(kept_kinds=("network-error", "crash"))
    assert post(door, [NEL, {**NEL, "type": "deprecation"}, {**NEL, "type": "crash"}]).status_code == 204
    assert [line["kind"] for line in stored(door)] == ["network-error", "crash"]
    assert post(door, CSP, "application/csp-report").status_code == 204
    assert len(door.link.stored) == 1


@pytest.mark.parametrize("sent", [[NEL], [], b"x", b""])
def test_a_retired_endpoint_is_410_whatever_comes(sent: object) -> None:
    door = Door(retire_browser_reports=True)
    result = post(door, sent)
    assert (result.status_code, code_of(result)) == (410, "endpoint_retired")
    assert door.link.stored == []
    assert door.post(b'{"clientId":"c","hosts":[]}').status_code == 200


def test_a_report_says_where_it_came_from_where_the_operator_asks() -> None:
    door = Door(address="full")
    sent = json.dumps([NEL]).encode()
    kind = "application/reports+json"
    asyncio.run(Exchange(door, [sent], size=len(sent), kind=kind, path=PATH, client="192.0.2.7").run())
    assert stored(door)[0]["address"] == "192.0.2.7"
