"""The clients against servers whose every answer, or silence, is chosen."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netwatch.loadtest import client
from netwatch.loadtest.answers import parse_answer
from netwatch.loadtest.audit import audit
from netwatch.loadtest.client import Load
from netwatch.loadtest.ledger import Fate, Ledger
from netwatch.loadtest.pace import Pace
from netwatch.loadtest.reports import Reports
from netwatch.loadtest.requests import Requests, address
from tests.stored import SEGMENT, line, line_id, stored_report, zstd

RUN = "0a1b2c3d"
SMALL = Reports(1, {"small": 1})


def answer(status: int, body: bytes, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), head, body)


def accepted(count: int) -> bytes:
    return answer(200, b'{"id":"x","accepted":%d,"duplicates":0,"rejected":0}' % count)


def test_answer_is_taken_at_its_last_byte_only() -> None:
    whole = accepted(1)
    assert all(parse_answer(whole[:cut]) is None for cut in range(len(whole)))
    taken = parse_answer(whole)
    assert taken is not None
    assert (taken.status, json.loads(taken.body)["accepted"]) == (200, 1)
    for garbage in (whole + b"H", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
        with pytest.raises(ValueError, match=r"answer"):
            parse_answer(garbage)


CUT = b"HTTP/1.1 200 OK\r\nContent-Le"


@dataclass
class Wire:
    """What a server was sent."""

    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections_total: int = 0

    def header(self, name: str) -> list[str]:
        """Its value in each request that has it."""
        lines = (line.partition(": ") for head in self.heads for line in head.split("\r\n"))
        return [value for found, _, value in lines if found == name]


Reply = bytes | Callable[[bytes], bytes]


def load_against(
    answers: list[Reply],
    *,
    reports: Reports = SMALL,
    clients: int = 1,
    batch: int = 0,
    encoding: str = "",
    keys: bool = False,
    token: str = "",
    log: Path | None = None,
    answer_s: float = 0.0,
    **options: Any,
) -> tuple[Load, Wire, Ledger]:
    """Load on a server that gives these answers in turn; b"" and CUT close; the last goes on for ever."""
    wire = Wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.connections_total += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                body = await reader.readexactly(int(head.partition("Content-Length: ")[2].split()[0]))
                wire.heads.append(head)
                wire.bodies.append(body)
                reply = answers[min(len(wire.bodies), len(answers)) - 1]
                await asyncio.sleep(answer_s)
                if callable(reply):
                    reply = reply(body)
                for part in (reply[:7], reply[7:]):
                    writer.write(part)
                    await asyncio.sleep(0)
                if reply in (b"", CUT) or b"Connection: close" in reply:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run() -> Load:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        requests = Requests(target, reports, ledger, batch=batch, encoding=encoding, keys=keys, token=token)
        load = Load(target, requests, ledger, keys=keys, log=file, **options)
        await load.run(0.5)
        server.close()
        return load

    ledger = Ledger(RUN, clients)
    with Path(log or os.devnull).open("w") as file:
        return asyncio.run(run()), wire, ledger


def test_client_sorts_every_answer_and_never_sends_a_report_twice(tmp_path: Path) -> None:
    answers: list[Reply] = [
        accepted(1),
        answer(503, b"{}", b"Retry-After: 1\r\n"),
        b"",
        accepted(1),
        CUT,
        answer(400, b"{}", b"Connection: close\r\n"),
        b"",
        accepted(1),
    ]
    load, wire, ledger = load_against(answers, log=tmp_path / "log")
    sent = len(wire.bodies)
    others = {503: 1, "closed": 2, "cut": 1, 400: 1}
    assert load.tally.requests == {200: sent - 5, **others}
    assert load.tally.dropped_total == 2  # the last b"" came on a fresh connection
    assert load.tally.anomalies_total == 0
    assert len({json.loads(body)["clientId"] for body in wire.bodies}) == sent == len(ledger.fates[0])
    assert list(ledger.fates[0][:8]) == [Fate.ACKED, *[Fate.UNKNOWN] * 2, Fate.ACKED, 0, Fate.REJECTED, 0, Fate.ACKED]
    logged = [json.loads(one) for one in (tmp_path / "log").read_text().splitlines()]
    assert [one["outcome"] for one in logged[:8]] == [200, 503, "closed", 200, "cut", 400, "closed", 200]
    assert [one["id"] for one in logged] == [f"{RUN}-0-{number}" for number in range(sent)]


def test_client_sends_batches_and_finds_a_200_that_accepts_less() -> None:
    load, wire, _ = load_against([accepted(3), accepted(2), answer(503, b""), b"SSH-2.0\r\n\r\n"], batch=3)
    assert [json.loads(one)["clientId"] for one in wire.bodies[1].split(b"\n")] == [f"{RUN}-0-{n}" for n in (3, 4, 5)]
    assert load.tally.reports[200] == 6
    assert load.tally.requests["garbage"] == len(wire.bodies) - 3
    assert "accept 3" in load.tally.anomalies[0]
    assert "Retry-After" in load.tally.anomalies[1]


def test_client_goes_on_when_nobody_listens() -> None:
    ledger = Ledger(RUN, 2)
    target = address("http://127.0.0.1:1")
    load = Load(target, Requests(target, SMALL, ledger), ledger)
    asyncio.run(load.run(0.1))
    assert set(load.tally.requests) == {"refused"}
    assert 2 <= load.tally.requests["refused"] <= 12
    assert set(ledger.fates[0] + ledger.fates[1]) == {Fate.UNSENT}


def repeated(count: int = 1) -> bytes:
    return answer(200, b'{"id":"x","accepted":0,"duplicates":%d,"rejected":0}' % count)


def test_a_request_whose_answer_was_lost_or_put_off_is_sent_again_under_its_key() -> None:
    later = b"Retry-After: 0\r\n"
    lost: list[Reply] = [b"", CUT, answer(503, b"{}", later), answer(429, b"{}", later), b"SSH-2.0\r\n\r\n"]
    load, wire, ledger = load_against([accepted(1), *lost, repeated(), accepted(1)], keys=True)
    sent = len(wire.bodies)
    keys = wire.header("Idempotency-Key")
    assert len(keys) == sent
    assert keys[1:7] == [keys[1]] * 6
    assert wire.bodies[1:7] == [wire.bodies[1]] * 6
    assert len({*keys}) == sent - 5 == len(ledger.fates[0])
    assert load.tally.requests == load.tally.reports == {200: sent - 5}
    assert load.tally.retried == {"closed": 1, "cut": 1, 503: 1, 429: 1, "garbage": 1}
    assert load.tally.duplicates_total == 1
    assert load.tally.dropped_total == 1
    assert load.tally.anomalies_total == 1  # what was no HTTP
    assert set(ledger.fates[0]) == {Fate.ACKED}


def test_a_200_that_speaks_of_duplicates_where_none_can_be_is_an_anomaly() -> None:
    load, _, _ = load_against([repeated(), accepted(1)], keys=True)
    assert load.tally.anomalies_total == 1


@pytest.mark.parametrize("last", [answer(400, b"{}"), answer(503, b"{}", b"Retry-After: 0\r\n")])
def test_a_request_that_never_gets_a_200_stays_unknown_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr(client, "GRACE_S", 0.1)
    load, wire, ledger = load_against([b"", last], keys=True)
    assert ledger.fates[0][0] == Fate.UNKNOWN
    assert load.duration_s < 5
    assert load.tally.requests.total() == len(set(wire.header("Idempotency-Key")))


@pytest.mark.parametrize("knows_keys", [True, False])
def test_a_server_that_stores_a_request_twice_under_its_key_is_found(tmp_path: Path, knows_keys: bool) -> None:
    """What is sent again is stored again by a server that does not look at keys; the audit counts each."""

    def answered(body: bytes, *, is_again: bool = False) -> bytes:
        said = {"id": line_id(json.loads(body)["clientId"]), "accepted": int(not is_again), "duplicates": int(is_again)}
        return answer(200, json.dumps(said).encode())

    again = functools.partial(answered, is_again=True)
    load, wire, ledger = load_against([answered, b"", CUT, again, b"", again, answered], keys=True)
    stored: list[bytes] = []
    seen: set[str] = set()
    for key, body in zip(wire.header("Idempotency-Key"), wire.bodies, strict=True):
        if key not in seen or not knows_keys:
            report_id = json.loads(body)["clientId"]
            stored.append(line(stored_report(SMALL, report_id), line_id(report_id)))
        seen.add(key)
    path = tmp_path / "reports/date=2026-11-22" / SEGMENT
    path.parent.mkdir(parents=True)
    path.write_bytes(zstd(stored))
    assert load.tally.retried.total() == 3
    assert audit(tmp_path, ledger, SMALL).found == ({} if knows_keys else {"doubled": 3})


def judged(body: bytes, reports: Reports) -> tuple[int, dict[str, Any]]:
    """The right answer to NDJSON with bad reports, which are told by their ids."""
    ids = [one.partition(b'":"')[2].partition(b'"')[0].decode() for one in body.split(b"\n")]
    bad = [index for index, report_id in enumerate(ids) if reports.is_bad(report_id)]
    said = {
        "id": "x",
        "accepted": len(ids) - len(bad),
        "rejected": len(bad),
        "errors": [{"index": index} for index in bad[:100]],
    }
    return (200 if said["accepted"] else 400), said


def test_bad_reports_must_be_rejected_one_by_one() -> None:
    reports = Reports(1, {"small": 1}, 0.5)

    def judge(body: bytes) -> bytes:
        status, said = judged(body, reports)
        return answer(status, json.dumps(said).encode())

    load, wire, ledger = load_against([judge], reports=reports, batch=3)
    bad_total = sum(reports.is_bad(f"{RUN}-0-{number}") for number in range(3 * len(wire.bodies)))
    assert load.tally.anomalies_total == 0
    assert load.tally.rejected_total == bad_total == ledger.fates[0].count(Fate.REJECTED) > 3
    assert load.tally.reports == {200: 3 * len(wire.bodies) - bad_total}
    assert load.tally.requests[400] == load.tally.bad_requests_total > 0


@pytest.mark.parametrize("wrong", [{"rejected": 0}, {"errors": []}, {"errors": [{"index": 99}]}, {"accepted": 3}])
def test_an_answer_that_rejects_others_or_more_than_the_bad_is_an_anomaly(wrong: dict[str, Any]) -> None:
    reports = Reports(1, {"small": 1}, 0.5)

    def lie(body: bytes) -> bytes:
        status, said = judged(body, reports)
        return answer(status, json.dumps(said | wrong).encode())

    load, _, ledger = load_against([lie], reports=reports, batch=3)
    bad_totals = [
        ledger.fates[0][first : first + 3].count(Fate.REJECTED) for first in range(0, len(ledger.fates[0]), 3)
    ]
    assert load.tally.anomalies_total >= sum(0 < bad_total < 3 for bad_total in bad_totals) > 0


@pytest.mark.parametrize("batch", [0, 3])
def test_a_bad_report_that_is_accepted_is_an_anomaly(batch: int) -> None:
    reports = Reports(1, {"small": 1}, 0.9)
    load, wire, ledger = load_against([accepted(batch or 1)], reports=reports, batch=batch)
    good_total = sum(
        not any(reports.is_bad(f"{RUN}-0-{number}") for number in range(first, first + (batch or 1)))
        for first in range(0, len(ledger.fates[0]), batch or 1)
    )
    assert load.tally.anomalies_total == len(wire.bodies) - good_total > 0


@pytest.mark.parametrize(
    ("encoding", "decode"),
    [
        ("gzip", lambda body: zlib.decompress(body, 31)),
        ("zstd", lambda body: zstandard.ZstdDecompressor().decompress(body)),
    ],
)
def test_bodies_are_encoded(encoding: str, decode: Callable[[bytes], bytes]) -> None:
    load, wire, _ = load_against([accepted(2)], batch=2, encoding=encoding)
    assert set(wire.header("Content-Encoding")) == {encoding}
    assert [json.loads(one)["clientId"] for one in decode(wire.bodies[0]).split(b"\n")] == [f"{RUN}-0-0", f"{RUN}-0-1"]
    assert load.tally.body_bytes == sum(len(decode(body)) for body in wire.bodies)
    assert load.tally.wire_bytes < load.tally.body_bytes


def test_a_connection_that_the_server_means_to_close_is_not_used_again() -> None:
    load, wire, _ = load_against([answer(400, b"{}", b"connection:close\r\n")])  # and it leaves it open
    assert wire.connections_total == len(wire.bodies) > 1
    assert load.tally.requests == {400: len(wire.bodies)}


def test_a_token_is_sent_with_each_request() -> None:
    _, wire, _ = load_against([accepted(1)], token="s3cret")
    assert wire.header("Authorization") == ["Bearer s3cret"] * len(wire.bodies)


@pytest.mark.parametrize(("share", "hasty"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_a_share_of_the_clients_opens_a_connection_for_each_request(share: float, hasty: int) -> None:
    load, wire, _ = load_against([accepted(1)], clients=2, new_connections=share, rate=100.0)
    close_total = wire.header("Connection").count("close")
    assert wire.connections_total == close_total + 2 - hasty
    assert (close_total > 0, close_total < len(wire.bodies)) == (hasty > 0, hasty < 2)
    assert load.tally.dropped_total == 0


@pytest.mark.parametrize("rate", [20.0, 700.0, 100_000.0])
def test_requests_are_due_evenly_and_none_is_sent_before(rate: float) -> None:
    async def take() -> list[tuple[float, float]]:
        start_s = time.monotonic()
        pace = Pace(rate, start_s, start_s + 60)
        taken = [(await pace.turn() - start_s, time.monotonic() - start_s) for _ in range(10)]
        assert pace.close() >= 9
        return taken

    taken = asyncio.run(take())
    assert [due_s for due_s, _ in taken] == pytest.approx([number / rate for number in range(10)], abs=1e-6)
    assert all(now_s >= due_s for due_s, now_s in taken)


def test_requests_that_are_overdue_at_the_end_are_still_sent() -> None:
    """One client, answers that take 20 ms, 100 requests due each second for half of one."""
    load, wire, _ = load_against([accepted(1)], rate=100.0, answer_s=0.02)
    assert len(wire.bodies) == 50
    assert load.tally.unsent_total == 0
    assert max(load.tally.latencies_s) > 0.4
    assert load.duration_s > 1.0


def test_requests_that_nobody_was_free_to_send_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GRACE_S", 0.0)
    load, wire, _ = load_against([accepted(1)], rate=100.0, answer_s=0.05)
    assert 2 <= len(wire.bodies) <= 11
    assert load.tally.unsent_total == 50 - len(wire.bodies)
    assert max(load.tally.latencies_s) > 0.25  # the last of them was long overdue
