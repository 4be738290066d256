"""What is logged of requests: refusals first and then counted, slow ones, a sample; each under the answer's id."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from netwatch.errors import Overloaded
from netwatch.http.request_log import Refusals
from tests.http.door import PATH, REPORT, Door, problem_of
from tests.http.serving import Client, post, serving, until

TOKEN = "0123456789abcdef"
ID = "01a20417-39bd-7a65-bd0b-2a6a8146534b"
BODY = b'{"id":"%b","accepted":1}' % ID.encode()


def logged(capfd: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    return [entry for entry in entries if entry["event"] == event]


def test_a_refusal_has_the_id_of_its_answer(capfd: pytest.CaptureFixture[str]) -> None:
    result = Door().request("POST", PATH + "/\x1b[31m", body=REPORT)
    (entry,) = logged(capfd, "request_refused")
    assert problem_of(result)["instance"] == f"urn:uuid:{entry['id']}"
    assert (entry["level"], entry["code"], entry["status"]) == ("info", "not_found", 404)
    assert entry["route"] == "other"


def test_what_an_operator_should_look_at_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    door = Door(tokens={"a": TOKEN})
    door.link.refusal = Overloaded("disk_full", "The disk is full.")
    door.post(REPORT)
    door.post(REPORT, headers={"authorization": f"Bearer {TOKEN}"})
    door.post(b"{", headers={"authorization": f"Bearer {TOKEN}"})
    levels = {entry["code"]: entry["level"] for entry in logged(capfd, "request_refused")}
    assert levels == {"token_missing": "warning", "disk_full": "warning", "invalid_json": "info"}


def test_a_fault_of_ours_has_an_id_too(capfd: pytest.CaptureFixture[str]) -> None:
    door = Door()
    door.link.refusal = RuntimeError("ours")
    result = door.post(REPORT)
    (entry,) = logged(capfd, "request_failed")
    assert (result.status_code, problem_of(result)["instance"]) == (500, f"urn:uuid:{entry['id']}")
    assert "ours" in entry["error"]


def test_the_first_of_a_kind_is_logged_and_the_others_are_summed_up(capfd: pytest.CaptureFixture[str]) -> None:
    async def storm() -> None:
        refusals = Refusals(period_s=0.2)
        ids = [refusals.refuse(code, "x") for code in ["overloaded"] * 100 + ["not_found"]]
        assert len(set(ids)) == 101
        await asyncio.sleep(0.3)
        refusals.refuse("overloaded", "x")
        await asyncio.sleep(0.6)  # a period without one: the next is a first one again
        refusals.refuse("overloaded", "x")
        refusals.refuse("overloaded", "x")
        await refusals.process_shutdown({}, {})

    asyncio.run(storm())
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(entry["event"], entry["code"], entry.get("requests")) for entry in entries] == [
        ("request_refused", "overloaded", None),
        ("request_refused", "not_found", None),
        ("requests_refused", "overloaded", 99),
        ("requests_refused", "overloaded", 1),
        ("request_refused", "overloaded", None),
        ("requests_refused", "overloaded", 1),
    ]


def test_what_the_protocol_refuses_is_counted_too() -> None:
    refused: list[str] = []

    def refuse(code: str, _detail: str) -> str:
        refused.append(code)
        return "the-id"

    with serving() as served:
        served.server.lifespan.state["refuse"] = refuse
        client = Client(served)
        client.send(b"NONSENSE\r\n\r\n")
        assert client.answer().problem["instance"] == "urn:uuid:the-id"
    assert refused == ["bad_request"]


@pytest.mark.parametrize(("slow_request_s", "is_logged"), [(0.2, True), (5.0, False), (0.0, False)])
def test_a_slow_request_is_logged_with_its_parts(
    slow_request_s: float, is_logged: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(slow_request_s=slow_request_s) as served:
        client = Client(served)
        client.send(f"POST /hold?token={TOKEN} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        until(lambda: served.begun)
        time.sleep(0.1)
        client.send(BODY)
        time.sleep(0.3)
        served.release()
        assert client.answer().status == 200
    entries = logged(capfd, "request_slow")
    assert len(entries) == is_logged
    if is_logged:
        (entry,) = entries
        assert (entry["level"], entry["method"], entry["route"], entry["status"]) == ("warning", "POST", "other", 200)
        assert entry["id"] == ID
        assert 0.09 <= entry["body_s"] <= entry["took_s"] - 0.29
        assert TOKEN not in json.dumps(entry)


def test_a_request_that_was_not_read_to_its_end_has_no_time_for_its_body(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(access_log_sample=1) as served:
        client = Client(served)
        client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        client.answer()
    (entry,) = logged(capfd, "request")
    assert (entry["route"], entry["body_s"], entry["id"]) == ("other", None, None)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 20, 80), (1.0, 100, 100)])
def test_a_sample_of_all_requests_is_logged(
    share: float, least: int, most: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(access_log_sample=share) as served:
        client = Client(served)
        for _ in range(100):
            client.send(post(BODY))
            assert client.answer().status == 200
    entries = logged(capfd, "request")
    assert least <= len(entries) <= most
    assert {entry["id"] for entry in entries} <= {ID}
