from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netwatch.errors import ERRORS, Overloaded
from netwatch.http import body, ingest, turn
from netwatch.http.in_flight import InFlight
from netwatch.metrics.board import Meter
from netwatch.reports import is_whole
from tests.http.door import JSON, NDJSON, REPORT, Door, Exchange, code_of, problem_of, report, until

KIB = 1024
BAD = b'{"clientId":5,"hosts":[]}'


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[InFlight]]:
    """The counters of bytes in flight that doors make; at the end of the test all must have been given back."""
    made: list[InFlight] = []

    class Counted(InFlight):
        def __init__(self, limit_bytes: int, reserved_bytes: int, meter: Meter) -> None:
            super().__init__(limit_bytes, reserved_bytes, meter)
            made.append(self)

    monkeypatch.setattr(ingest, "InFlight", Counted)
    yield made
    assert made
    assert [counter.bytes for counter in made] == [0] * len(made)


# What is taken


def test_one_object_is_one_report() -> None:
    door = Door()
    before_s = time.time()
    result = door.post(REPORT)
    assert result.status_code == 200
    assert result.headers["content-type"] == "application/json"
    (lines,) = door.link.stored
    stored = json.loads(lines)
    answer = result.json
    assert answer == {
        "id": stored["id"],
        "accepted": 1,
        "duplicates": 0,
        "rejected": 0,
        "durability": "synced",
        "errors": [],
    }
    assert list(answer) == ["id", "accepted", "duplicates", "rejected", "durability", "errors"]
    assert before_s - 0.001 <= (uuid.UUID(answer["id"]).int >> 80) / 1000 <= time.time()
    assert is_whole(lines.rstrip(b"\n"))
    assert (stored["kind"], stored["server"], stored["report"]) == ("report", "host1", json.loads(REPORT))


@pytest.mark.parametrize("count", [1, 2, 50, 1000])
@pytest.mark.parametrize(
    ("kind", "join"),
    [
        (JSON, lambda reports: b"[" + b",".join(reports) + b"]"),
        (JSON, lambda reports: b"\n [ " + b" ,\n ".join(reports) + b" ] \r\n"),
        ("text/plain", lambda reports: b"[" + b",".join(reports) + b"]"),
        (JSON, lambda reports: b"".join(reports)),
        (JSON, lambda reports: b"\n".join(reports) + b"\n"),
        ("text/plain", lambda reports: b" \r\n\t".join(reports)),
        (NDJSON, lambda reports: b"\n".join(reports)),
        (NDJSON, lambda reports: b"\n".join(reports) + b"\n"),
        (NDJSON, lambda reports: b"\r\n".join(reports) + b"\r\n"),
        (NDJSON, lambda reports: b"\n\r\n \t\n" + b"\n\n\r\n".join(reports) + b"\n\n"),
        ("application/ndjson", lambda reports: b"\n".join(reports)),
        ("application/jsonl", lambda reports: b"  " + b" \n  ".join(reports)),
    ],
)
def test_a_request_is_stored_whole_in_order_by_one_call(
    kind: str, join: Callable[[list[bytes]], bytes], count: int
) -> None:
    door = Door()
    result = door.post(join([report(number) for number in range(count)]), kind)
    answer = result.json
    assert (result.status_code, answer["accepted"], answer["rejected"], answer["errors"]) == (200, count, 0, [])
    assert len(door.link.stored) == 1
    assert [stored["clientId"] for stored in door.link.reports] == [f"c{number}" for number in range(count)]
    lines = door.link.stored[0].splitlines()
    assert answer["id"] == json.loads(lines[0])["id"]
    assert len({json.loads(line)["id"] for line in lines}) == count
    assert len({json.loads(line)["receivedAt"] for line in lines}) == 1


@pytest.mark.parametrize("sent", [b"[]", b" [ \n] "])
def test_an_empty_array_is_fine_and_stores_nothing(sent: bytes) -> None:
    door = Door()
    result = door.post(sent)
    assert result.status_code == 200
    assert result.text == '{"id":null,"accepted":0,"duplicates":0,"rejected":0,"durability":"synced","errors":[]}'
    assert door.link.stored == []


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (JSON, b"[%b,%b,1,%b]" % (report(0), BAD, report(3))),
        (NDJSON, b"\n%b\n\n%b\r\n \n1\n%b" % (report(0), BAD, report(3))),
    ],
)
def test_index_counts_the_reports_and_not_the_blank_lines(kind: str, sent: bytes) -> None:
    door = Door()
    result = door.post(sent, kind)
    answer = result.json
    assert (result.status_code, answer["accepted"], answer["rejected"]) == (200, 2, 2)
    assert [stored["clientId"] for stored in door.link.reports] == ["c0", "c3"]
    assert answer["errors"] == [
        {"index": 1, "code": "invalid_member", "pointer": "/clientId", "detail": "Expected `str`, got `int`."},
        {"index": 2, "code": "invalid_member", "pointer": "", "detail": "Expected `object`, got `int`."},
    ]


def test_a_broken_line_of_ndjson_rejects_that_line_only() -> None:
    door = Door()
    answer = door.post(b'{"clientId":\n%b\n\xff\n' % REPORT, NDJSON).json
    assert (answer["accepted"], [error["code"] for error in answer["errors"]]) == (1, ["invalid_json", "invalid_utf8"])


def test_invalid_utf8_in_an_array_rejects_that_report_only() -> None:
    door = Door()
    answer = door.post(b'[{"clientId":"c","hosts":[],"x":"\xff"},%b]' % REPORT).json
    assert (answer["accepted"], [error["code"] for error in answer["errors"]]) == (1, ["invalid_utf8"])


def test_the_first_hundred_errors_are_told_and_all_are_counted() -> None:
    door = Door()
    result = door.post(b"\n".join([BAD] * 150 + [REPORT]), NDJSON)
    answer = result.json
    assert (result.status_code, answer["accepted"], answer["rejected"], len(answer["errors"])) == (200, 1, 150, 100)
    assert [error["index"] for error in answer["errors"]] == list(range(100))


def test_a_report_over_its_limit_is_rejected_and_the_others_are_stored() -> None:
    door = Door(max_report_bytes=KIB)
    large = b'{"clientId":"c","hosts":[],"x":"%b"}' % (b"x" * KIB)
    answer = door.post(b"[%b,%b]" % (large, REPORT)).json
    assert (answer["accepted"], [error["code"] for error in answer["errors"]]) == (1, ["report_too_large"])


def test_what_the_settings_say_reaches_the_lines() -> None:
    door = Door(max_depth=8)
    assert door.post(b'{"clientId":"c","hosts":[],"x":%b}' % (b"[" * 7 + b"]" * 7)).status_code == 200
    assert code_of(door.post(b'{"clientId":"c","hosts":[],"x":%b}' % (b"[" * 8 + b"]" * 8))) == "too_deep"


# What is not


@pytest.mark.parametrize("kind", sorted(body.JSON | body.NDJSON))
@pytest.mark.parametrize("sent", [b"", b" ", b"\r\n\t \n", b" " * 1000])
def test_an_empty_body_is_400(kind: str, sent: bytes) -> None:
    door = Door()
    assert code_of(door.post(sent, kind)) == "empty_body"
    assert door.link.stored == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (BAD, "invalid_member"),
        (b"{}", "missing_member"),
        (REPORT + b"x", "invalid_json"),
        (b'{"clientId":"c","hosts":[],"x":1e999}', "number_out_of_range"),
        (b'{"clientId":"c","hosts":[],"x":"\xff"}', "invalid_utf8"),
        (b'{"clientId":"c","hosts":[],"x":' + b"[" * 40 + b"]" * 40 + b"}", "too_deep"),
        (b'{"clientId":"c","hosts":[],"x":"%b"}' % (b"x" * 1024 * KIB), "report_too_large"),
    ],
)
def test_a_single_report_that_is_bad_is_400_with_its_own_code(sent: bytes, code: str) -> None:
    door = Door()
    result = door.post(sent)
    document = problem_of(result)
    assert (result.status_code, code_of(result), document["rejected"]) == (400, code, 1)
    (error,) = document["errors"]
    assert (error["index"], error["code"], error["detail"]) == (0, code, document["detail"])
    assert door.link.stored == []


@pytest.mark.parametrize(("kind", "sent"), [(JSON, b"[%b,%b]" % (BAD, BAD)), (NDJSON, b"\n".join([BAD] * 2))])
def test_nothing_valid_in_it_is_400_with_the_errors(kind: str, sent: bytes) -> None:
    door = Door()
    document = problem_of(result := door.post(sent, kind))
    assert (result.status_code, code_of(result), document["rejected"]) == (400, "no_valid_report", 2)
    assert [error["index"] for error in document["errors"]] == [0, 1]
    assert door.link.stored == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense", "invalid_json"),
        (b"1", "invalid_json"),
        (b"\xef\xbb\xbf%b" % REPORT, "invalid_json"),
        (REPORT + REPORT[:-1], "invalid_json"),
        (REPORT + b"x" + REPORT, "invalid_json"),
        (REPORT + b"," + REPORT, "invalid_json"),
        (b"%b\n%b]" % (REPORT, REPORT), "invalid_json"),
        (b"[%b" % REPORT, "invalid_json"),
        (b"[%b,]" % REPORT, "invalid_json"),
        (b"[%b]]" % REPORT, "invalid_json"),
        (b"[%b][%b]" % (REPORT, REPORT), "invalid_json"),
        (b"[%b]\0" % REPORT, "invalid_json"),
        (b"[" * 100_000, "too_deep"),
        (b"[" + b"[" * 100_000 + b"]" * 100_000 + b"]", "too_deep"),
    ],
)
def test_a_body_that_is_broken_anywhere_stores_nothing(sent: bytes, code: str) -> None:
    door = Door()
    assert code_of(result := door.post(sent)) == code
    assert result.status_code == 400
    assert door.link.stored == []


def test_a_body_over_its_limit_is_413_with_the_limit(in_flight: list[InFlight]) -> None:
    door = Door(max_body_bytes=KIB)
    assert door.post(REPORT.ljust(KIB)).status_code == 200
    result = door.post(REPORT.ljust(KIB + 1))
    assert (result.status_code, code_of(result), problem_of(result)["limit"]) == (413, "body_too_large", KIB)
    assert len(door.link.stored) == 1


@pytest.mark.parametrize(
    ("kind", "join"),
    [
        (JSON, lambda reports: b"[" + b",".join(reports) + b"]"),
        (JSON, lambda reports: b"".join(reports)),
        (NDJSON, lambda reports: b"\n".join(reports)),
        (NDJSON, lambda reports: b"\n\n".join(reports) + b"\n\n"),
    ],
)
def test_a_count_over_its_limit_is_413_with_the_limit(
    kind: str, join: Callable[[list[bytes]], bytes], in_flight: list[InFlight]
) -> None:
    door = Door(max_reports=7)
    assert door.post(join([REPORT] * 7), kind).status_code == 200
    result = door.post(join([REPORT] * 8), kind)
    assert (result.status_code, code_of(result), problem_of(result)["limit"]) == (413, "too_many_reports", 7)
    assert len(door.link.stored) == 1


# What the writer says


@pytest.mark.parametrize("code", ["ack_timeout", "disk_full", "disk_error", "recovering", "unknown"])
def test_what_the_link_refuses_is_503_with_its_code(code: str, in_flight: list[InFlight]) -> None:
    door = Door()
    door.link.refusal = Overloaded(code, "Later.", retry_after_s=7)
    result = door.post(REPORT)
    assert (result.status_code, code_of(result), result.headers["retry-after"]) == (503, code, "7")


def test_a_fault_of_ours_is_500_and_tells_nothing(in_flight: list[InFlight], capfd: pytest.CaptureFixture[str]) -> None:
    door = Door()
    door.link.refusal = RuntimeError("secret\ninside")
    result = door.post(REPORT)
    assert (result.status_code, code_of(result)) == (500, "internal")
    assert b"secret" not in result.content
    logged = json.loads(capfd.readouterr().err)
    assert (logged["event"], logged["route"]) == ("request_failed", "/api/v1/reports")
    assert "secret" in logged["error"]


# Bytes in flight


def test_past_the_bound_it_is_503_at_once_and_works_again_later(in_flight: list[InFlight]) -> None:
    async def scenario() -> None:
        door = Door(max_body_bytes=4 * KIB, in_flight_bytes=4 * KIB)
        door.link.is_holding = True
        first = Exchange(door, [REPORT], size=len(REPORT))
        running = asyncio.create_task(first.run())
        await until(lambda: door.link.held)
        assert in_flight[0].bytes == len(REPORT)
        second = Exchange(door, [REPORT.ljust(4 * KIB)], size=4 * KIB)
        assert (await second.run())["type"] == "urn:netwatch:error:overloaded"
        assert (second.status, second.headers["retry-after"]) == (503, "1")
        assert in_flight[0].bytes == len(REPORT)
        door.link.held.pop().set_result(None)
        assert (await running)["accepted"] == 1
        door.link.is_holding = False
        assert (await Exchange(door, [REPORT.ljust(4 * KIB)], size=4 * KIB).run())["accepted"] == 1

    asyncio.run(scenario())


def test_a_body_is_counted_before_it_is_read(in_flight: list[InFlight]) -> None:
    async def scenario() -> None:
        door = Door()
        exchange = Exchange(door, [REPORT], size=1000)
        exchange.gate.clear()
        running = asyncio.create_task(exchange.run())
        await until(lambda: in_flight[0].bytes == 1000)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [None, 2 * len(REPORT)])
def test_a_request_that_is_cancelled_gives_back_its_bytes(size: int | None, in_flight: list[InFlight]) -> None:
    async def scenario(is_body_there: bool) -> None:
        door = Door()
        door.link.is_holding = True
        exchange = Exchange(door, [REPORT, b" " * len(REPORT)], size=size)
        if not is_body_there:
            exchange.gate.clear()
        running = asyncio.create_task(exchange.run())
        await until(lambda: door.link.held if is_body_there else in_flight[-1].bytes)
        assert in_flight[-1].bytes
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert in_flight[-1].bytes == 0

    asyncio.run(scenario(True))
    asyncio.run(scenario(False))


def test_a_waiting_request_is_kept_by_its_link_only() -> None:
    """Kept by the resource too, what a frozen writer holds up would need a multiple of its bytes."""

    async def scenario() -> None:
        door = Door()
        door.link.is_holding = True
        size, count = 10 * KIB, 200
        sent = b"\n".join([b'{"clientId":"c","hosts":[],"x":"%b"}' % (b"x" * size)] * count)
        exchange = Exchange(door, [sent], size=len(sent), kind=NDJSON)
        del sent
        tracemalloc.start()
        running = asyncio.create_task(exchange.run())
        await until(lambda: door.link.held)
        kept_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept_bytes < 1.5 * size * count
        door.link.held.pop().set_result(None)
        assert (await running)["accepted"] == count

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [None, len(REPORT) + 1])
@pytest.mark.parametrize("chunks", [[], [b""], [REPORT], [REPORT[:5]], [REPORT[:5], REPORT[5:]]])
def test_a_body_that_is_cut_is_never_stored(chunks: list[bytes], size: int | None, in_flight: list[InFlight]) -> None:
    door = Door()
    exchange = Exchange(door, chunks, size=size, is_whole=False)
    answer = asyncio.run(exchange.run())
    if chunks:  # Falcon does not even begin when nothing comes
        assert (exchange.status, answer["type"]) == (400, "urn:netwatch:error:incomplete_body")
    assert door.link.stored == []


@pytest.mark.parametrize("step", [1, 3, len(REPORT)])
def test_a_chunked_body_is_taken_whole(step: int, in_flight: list[InFlight]) -> None:
    door = Door()
    chunks = [REPORT[start : start + step] for start in range(0, len(REPORT), step)]
    assert asyncio.run(Exchange(door, chunks).run())["accepted"] == 1
    assert door.link.reports == [json.loads(REPORT)]


def test_a_chunked_body_is_counted_as_it_comes(in_flight: list[InFlight]) -> None:
    async def scenario() -> None:
        door = Door(max_body_bytes=4 * KIB, in_flight_bytes=4 * KIB)
        exchange = Exchange(door, [b" " * KIB] * 3)
        exchange.gate.clear()
        running = asyncio.create_task(exchange.run())
        await until(lambda: in_flight[0].bytes == 3 * KIB)
        other = Exchange(door, [b" " * KIB] * 2)
        assert (await other.run())["type"] == "urn:netwatch:error:overloaded"
        assert other.status == 503
        assert in_flight[0].bytes == 3 * KIB
        exchange.gate.set()
        assert (await running)["type"] == "urn:netwatch:error:empty_body"

    asyncio.run(scenario())


def test_a_chunked_body_over_its_limit_is_413(in_flight: list[InFlight]) -> None:
    door = Door(max_body_bytes=KIB)
    assert asyncio.run(Exchange(door, [REPORT, b" " * (KIB - len(REPORT))]).run())["accepted"] == 1
    exchange = Exchange(door, [REPORT, b" " * (KIB - len(REPORT)), b" "])
    assert asyncio.run(exchange.run())["type"] == "urn:netwatch:error:body_too_large"
    assert exchange.status == 413
    assert len(door.link.stored) == 1


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (REPORT, JSON),
        (BAD, JSON),
        (b"", JSON),
        (b"[", JSON),
        (b"[]", JSON),
        (REPORT, "text/html"),
        (b"x" * 3 * KIB, JSON),
    ],
)
def test_every_answer_gives_back_its_bytes(sent: bytes, kind: str, in_flight: list[InFlight]) -> None:
    Door(max_body_bytes=2 * KIB).post(sent, kind)


def test_many_lines_give_way_to_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> int:
        sent = b"\n".join([REPORT] * 200)
        running = asyncio.create_task(Exchange(Door(), [sent], size=len(sent), kind=NDJSON).run())
        turns = 0
        while not running.done():
            turns += 1
            await asyncio.sleep(0)
        assert running.result()["accepted"] == 200
        return turns

    monkeypatch.setattr(turn, "_TURN_S", -1)
    assert asyncio.run(scenario()) > 200
    monkeypatch.setattr(turn, "_TURN_S", 60)
    assert asyncio.run(scenario()) < 20


# The list of errors


def test_every_code_is_reachable_or_has_its_reason() -> None:
    here = {
        *("invalid_json", "invalid_utf8", "invalid_member", "missing_member", "number_out_of_range", "too_deep"),
        *("report_too_large", "no_valid_report", "empty_body", "incomplete_body", "body_too_large", "too_many_reports"),
        *("overloaded", "ack_timeout", "disk_full", "disk_error", "recovering", "unknown", "internal"),
    }
    elsewhere = {
        "unsupported_media_type": "test_body",
        "unsupported_encoding": "test_encoding",
        "invalid_encoding": "test_encoding",
        "token_missing": "test_access",
        "token_unknown": "test_access",
        "origin_not_allowed": "test_access",
        "over_share": "test_in_flight",
        "invalid_key": "test_keys",
        "kind_ignored": "test_browser_reports",
        "endpoint_retired": "test_browser_reports",
        "too_many_connections": "test_statuses",
        "not_found": "test_app",
        "method_not_allowed": "test_app",
        "bad_request": "test_protocol",
    }
    assert here | set(elsewhere) == set(ERRORS)


def test_the_answer_never_repeats_what_was_sent() -> None:
    hostile: dict[str, Any] = {"<script>": "<script>", "clientId": "<script>", "hosts": [{"<script>": 1}]}
    result = Door().post(json.dumps(hostile).encode())
    assert result.status_code == 400
    assert b"script" not in result.content
