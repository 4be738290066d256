"""What each answer is, in one place: clients lose data on the wrong status, so each that concerns us is asserted here.

Chrome sends its reports up to five times after a 400; Firefox forgets them on any refusal; Vector and Fluent Bit drop
data on a 4xx but for 408 and 429, and try again on 429, 502, 503 and 504. So what may work later is 503 or 429 with
Retry-After, bad data is 400, and no other number is ever sent on purpose.
"""

from __future__ import annotations

import asyncio
import gzip

import falcon.testing
import pytest

from netwatch.errors import ERRORS, Overloaded
from tests.http.door import PATH, REPORT, Door, Exchange, code_of, until
from tests.http.serving import Client, post, serving
from tests.http.serving import until as until_there

BROWSER_PATH = "/api/v1/browser-reports"
BROWSER_JSON = {"content-type": "application/reports+json"}
TOKENS = {"agents": "agents-token-0123456789"}
KIB = 1024


def browser(door: Door, sent: bytes, **headers: str) -> falcon.testing.Result:
    return door.request("POST", BROWSER_PATH, body=sent, headers={**BROWSER_JSON, **headers})


def test_no_status_is_declared_that_loses_data() -> None:
    """206 to 299 make Fluent Bit send again, 408 and 500 to 507 but 503 make some drop what may work later."""
    statuses = {status for status, _ in ERRORS.values()}
    assert statuses == {204, 400, 401, 403, 404, 405, 410, 413, 415, 429, 500, 503}
    assert {code for code, (status, _) in ERRORS.items() if status == 500} == {"internal"}
    later = {"overloaded", "ack_timeout", "disk_full", "disk_error", "recovering", "unknown", "too_many_connections"}
    assert {code for code, (status, _) in ERRORS.items() if status == 503} == later
    assert {code for code, (status, _) in ERRORS.items() if status == 429} == {"over_share"}


@pytest.mark.parametrize("sent", [REPORT, b"[]", b'[{"clientId":5,"hosts":[]},%b]' % REPORT])
def test_200_is_what_was_stored_in_whole_or_in_part(sent: bytes) -> None:
    assert Door().post(sent).status_code == 200


@pytest.mark.parametrize("sent", [b"[]", b"[1]", b'[{"type":"crash","body":{}}]', b'[{"type":"x","age":-1,"body":1}]'])
def test_204_is_every_array_of_a_browser(sent: bytes) -> None:
    assert browser(Door(), sent).status_code == 204
    assert browser(Door(kept_kinds=("none of them",)), sent).status_code == 204


def test_204_is_a_preflight() -> None:
    for path in (PATH, BROWSER_PATH):
        result = Door(allowed_origins=("*",)).request("OPTIONS", path, headers={"origin": "https://a.example"})
        assert (result.status_code, result.content) == (204, b"")


@pytest.mark.parametrize("sent", [b"", b"[", b"{}", b"1", b"\xff", b'{"clientId":"c","hosts":[],"x":1e999}'])
def test_400_is_bad_data(sent: bytes) -> None:
    assert Door().post(sent).status_code == 400


def test_400_is_a_broken_encoding_a_bad_key_and_a_body_that_was_cut() -> None:
    door = Door()
    cut = gzip.compress(REPORT)[:-1]
    assert code_of(door.post(cut, headers={"content-encoding": "gzip"})) == "invalid_encoding"
    assert code_of(door.post(REPORT, headers={"idempotency-key": "a b"})) == "invalid_key"
    exchange = Exchange(door, [REPORT], size=1000, is_whole=False)
    asyncio.run(exchange.run())
    assert exchange.status == 400
    assert door.link.stored == []


def test_401_is_a_token_that_is_missing_or_unknown() -> None:
    door = Door(tokens=TOKENS)
    for headers in ({}, {"authorization": "Bearer unknown"}):
        for result in (door.post(REPORT, headers=headers), browser(door, b"[]", **headers)):
            assert result.status_code == 401
            assert "www-authenticate" in result.headers


def test_403_is_another_origin() -> None:
    door = Door()
    for result in (
        door.post(REPORT, headers={"origin": "https://a.example"}),
        browser(door, b"[]", origin="https://a.example"),
        door.request("OPTIONS", PATH, headers={"origin": "https://a.example"}),
    ):
        assert result.status_code == 403
    assert door.link.stored == []


def test_404_and_405_are_wrong_paths_and_methods() -> None:
    assert Door().request("POST", "/v1/logs", body=b"{}").status_code == 404
    for path in (PATH, BROWSER_PATH):
        result = Door().request("PUT", path, body=b"{}")
        assert result.status_code == 405
        assert "POST" in result.headers["allow"]


def test_410_is_a_retired_endpoint_which_browsers_forget() -> None:
    assert browser(Door(retire_browser_reports=True), b"[]").status_code == 410


def test_413_is_too_much_encoded_or_decoded() -> None:
    door = Door(max_body_bytes=KIB, max_reports=3)
    assert door.post(REPORT.ljust(KIB + 1)).status_code == 413
    assert door.post(gzip.compress(REPORT.ljust(KIB + 1)), headers={"content-encoding": "gzip"}).status_code == 413
    assert door.post(b"[%b,%b,%b,%b]" % ((REPORT,) * 4)).status_code == 413
    assert browser(door, b"[1,1,1,1]").status_code == 413
    assert door.link.stored == []


def test_415_is_another_format_or_encoding_otlp_among_them() -> None:
    door = Door()
    for kind in ("application/x-protobuf", "application/x-www-form-urlencoded", "text/csv"):
        assert door.post(REPORT, kind).status_code == 415
    assert door.post(REPORT, headers={"content-encoding": "snappy"}).status_code == 415
    assert browser(door, b"[]", **{"content-type": "application/json"}).status_code == 415
    assert door.link.stored == []


def test_429_is_a_client_over_its_share() -> None:
    async def scenario() -> Exchange:
        door = Door(max_body_bytes=KIB, in_flight_bytes=KIB, page_reserve_bytes=0)
        others = [Exchange(door, [REPORT], size=400, client=f"10.0.0.{number}") for number in (1, 2)]
        for other in others:
            other.gate.clear()
        running = [asyncio.create_task(other.run()) for other in others]
        await until(lambda: all(other.is_begun for other in others))
        again = Exchange(door, [REPORT], size=200, client="10.0.0.1")
        await again.run()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return again

    again = asyncio.run(scenario())
    assert (again.status, again.headers["retry-after"]) == (429, "1")


def test_500_is_only_a_fault_of_ours() -> None:
    door = Door()
    door.link.refusal = RuntimeError("it broke")
    assert door.post(REPORT).status_code == 500


@pytest.mark.parametrize("code", ["ack_timeout", "disk_full", "disk_error", "recovering", "unknown"])
def test_503_is_whatever_may_work_later_and_says_when(code: str) -> None:
    door = Door()
    door.link.refusal = Overloaded(code, "Later.", retry_after_s=3)
    for result in (door.post(REPORT), browser(door, b'[{"type":"x","body":1}]')):
        assert (result.status_code, result.headers["retry-after"]) == (503, "3")


def test_503_is_too_many_bytes_in_flight() -> None:
    door = Door(max_body_bytes=KIB, in_flight_bytes=KIB, page_reserve_bytes=0)
    chunks = [b" " * 600, b" " * 300]
    held = asyncio.run(_two_at_once(door, chunks))
    assert (held.status, held.headers["retry-after"]) == (503, "1")


async def _two_at_once(door: Door, chunks: list[bytes]) -> Exchange:
    first, second = Exchange(door, [REPORT], size=900), Exchange(door, chunks, client="10.0.0.2")
    first.gate.clear()
    running = asyncio.create_task(first.run())
    await until(lambda: first.is_begun)
    await second.run()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return second


def test_503_is_one_connection_too_many_which_is_then_closed() -> None:
    with serving(max_connections=2) as served:
        kept = [Client(served) for _ in range(2)]
        until_there(lambda: served.connections == 2)
        above = Client(served)
        answer = above.answer()
        assert (answer.status, answer.problem["type"]) == (503, "urn:netwatch:error:too_many_connections")
        assert (answer.headers["retry-after"], answer.is_last) == ("1", True)
        above.closed_after_s()
        for client in kept:
            client.send(post(b"hello"))
            assert client.answer().body == b"hello"
        kept[0].close()
        until_there(lambda: served.connections == 1)
        fresh = Client(served)
        fresh.send(post(b"hello"))
        assert fresh.answer().status == 200
