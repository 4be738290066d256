"""The load test is believed when it says that nothing was lost; here it is shown what must not be, and reports it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netwatch.loadtest.__main__ import main
from netwatch.loadtest.audit import Audit, audit, digest, read_lines
from netwatch.loadtest.chaos import Process, Server, Storm, descendants, wait_until
from netwatch.loadtest.client import Load, parse_answer
from netwatch.loadtest.ledger import Fate, Ledger, fate_of
from netwatch.loadtest.reports import SHAPES, Reports

RUN = "0a1b2c3d"
SMALL = Reports(1, "small")
SEGMENT = "reports-2026-11-22T10-24-10.123Z-9f3a0c12-1.jsonl.zst"

Edit = Callable[[bytes], bytes]


def stored_report(reports: Reports, report_id: str) -> dict[str, Any]:
    """The report as the server stores it: latency with its decimal point."""
    report: dict[str, Any] = json.loads(reports.body(report_id))
    for host in report["hosts"]:
        for sample in host["history"]:
            if sample.get("latency") is not None:
                sample["latency"] = float(sample["latency"])
    return report


def with_crc(text: str) -> bytes:
    return f'{text},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def line(report: dict[str, Any]) -> bytes:
    fixed: dict[str, Any] = {
        "id": str(uuid.UUID(int=uuid.uuid4().int & ~(0xF << 76) | 7 << 76)),
        "receivedAt": "2026-11-22T10:24:10.123456Z",
        "kind": "report",
        "server": "host1",
        "report": report,
    }
    return with_crc(json.dumps(fixed, separators=(",", ":"), ensure_ascii=False)[:-1])


def zstd(lines: list[bytes]) -> bytes:
    return subprocess.run(["zstd", "-1", "-c"], input=b"".join(lines), capture_output=True, check=True).stdout


class Made:
    """A made-up data directory: two clients sent three reports each, all answered 200 and stored."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.reports = SMALL
        self.ledger = Ledger(RUN, 2)
        self.lines: list[bytes] = []
        for client in range(2):
            for number in self.ledger.take(client, 3):
                self.lines.append(self.line(self.ledger.report_id(client, number)))
            self.ledger.settle(client, range(3), Fate.ACKED)

    def line(self, report_id: str) -> bytes:
        return line(stored_report(self.reports, report_id))

    def write(self, name: str = f"reports/date=2026-11-22/{SEGMENT}", data: bytes | None = None) -> Path:
        path = self.data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstd(self.lines) if data is None else data)
        return path

    def audit(self, *, live: bool = False) -> Audit:
        return audit(self.data_dir, self.ledger, self.reports, live=live)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_audit_of_what_was_promised_finds_nothing(made: Made) -> None:
    made.write()
    result = made.audit()
    assert result.failures() == []
    assert (result.files, result.lines, result.of_this_run) == (1, 6, 6)


def test_audit_reports_a_missing_report(made: Made) -> None:
    del made.lines[4]
    made.write()
    assert made.audit().found == {"missing": 1}
    assert made.audit().failures()[0].endswith(f"e.g. {RUN}-1-1")


def test_audit_reports_a_doubled_report(made: Made) -> None:
    made.write()
    made.write(f"reports/date=2026-11-23/{SEGMENT.replace('-1.', '-2.')}", zstd([made.line(f"{RUN}-1-1")]))
    assert made.audit().found == {"doubled": 1}


@pytest.mark.parametrize(
    "alter",
    [
        lambda report: report["hosts"][0]["history"][0].update(t=1),
        lambda report: report["hosts"][0]["history"][0].update(t=float(report["hosts"][0]["history"][0]["t"])),
        lambda report: report["hosts"].pop(),
        lambda report: report["geo"].update(city="Paris"),
        lambda report: report.pop("timestamp"),
        lambda report: report.update(more=1),
    ],
)
def test_audit_reports_an_altered_report(made: Made, alter: Callable[[dict[str, Any]], object]) -> None:
    report = stored_report(made.reports, f"{RUN}-0-2")
    alter(report)
    made.lines[2] = line(report)
    made.write()
    assert made.audit().found == {"altered": 1}


def test_audit_reports_a_latency_without_its_decimal_point(made: Made) -> None:
    sent = ((number, json.loads(made.reports.body(f"{RUN}-0-{number}"))) for number in range(1000))
    number, report = next(
        (number, report)
        for number, report in sent
        if any(isinstance(sample.get("latency"), int) for host in report["hosts"] for sample in host["history"])
    )
    made.ledger.settle(0, made.ledger.take(0, number + 1), Fate.UNKNOWN)
    made.lines.append(line(report))
    made.lines = [one for one in made.lines if f'"{RUN}-0-{number}"'.encode() not in one] + [made.lines[-1]]
    made.write()
    assert made.audit().found == {"altered": 1}


@pytest.mark.parametrize("fate", [Fate.REJECTED, Fate.UNSENT])
def test_audit_reports_a_stored_report_that_was_not_taken(made: Made, fate: Fate) -> None:
    made.ledger.settle(0, range(1, 2), fate)
    made.write()
    assert made.audit().found == {"unexpected": 1}


@pytest.mark.parametrize("report_id", [f"{RUN}-0-3", f"{RUN}-2-0", f"{RUN}-0-01", f"{RUN}--1-0", "nobody", "²-²-²"])
def test_audit_reports_an_id_that_was_never_sent(made: Made, report_id: str) -> None:
    made.lines.append(made.line(report_id))
    made.write()
    assert made.audit().found == {"unexpected": 1}


def test_audit_lets_other_runs_and_unknown_reports_be(made: Made) -> None:
    made.ledger.settle(0, range(2), Fate.UNKNOWN)
    made.lines[1] = made.line("ffffffff-0-0")
    made.write()
    result = made.audit()
    assert result.failures() == []
    assert (result.of_other_runs, result.unknown_stored) == (1, 1)


def test_audit_reports_an_unknown_report_stored_twice(made: Made) -> None:
    made.ledger.settle(0, range(1), Fate.UNKNOWN)
    made.lines.append(made.lines[0])
    made.write()
    assert made.audit().found == {"doubled": 1}


def _flip_in_report(raw: bytes) -> bytes:
    return raw.replace(b'"country":"', b'"country":"X')


def _recrc(edit: Edit) -> Edit:
    """The edit, with a right crc afterwards."""
    return lambda raw: with_crc(edit(raw).rpartition(b',"crc":')[0].decode(errors="surrogateescape"))


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda raw: raw.replace(b'"crc":"', b'"crc":"0')[:-4] + b'"}\n', {"bad_crc": 1}),
        (_flip_in_report, {"bad_crc": 1, "altered": 1}),
        (lambda raw: raw[:-20] + b"}\n", {"bad_line": 1, "missing": 1}),
        (lambda raw: raw[:50] + b"\n", {"bad_line": 1, "missing": 1}),
        (lambda raw: raw[:-1], {"bad_line": 1}),
        (_recrc(lambda raw: raw.replace(b'"server":"host1",', b"")), {"bad_line": 1, "missing": 1}),
        (_recrc(lambda raw: raw.replace(b'"kind":"report",', b"")), {"bad_line": 1, "missing": 1}),
        (_recrc(lambda raw: raw.replace(b'"kind"', b'"more":1,"kind"')), {"bad_line": 1, "missing": 1}),
        (_recrc(lambda raw: raw.replace(b".123456Z", b".123Z")), {"bad_line": 1, "missing": 1}),
        (_recrc(lambda raw: raw.replace(b'"geo":{', b'"geo":{"city":"","city":"",')), {"bad_line": 1, "missing": 1}),
        (_recrc(lambda raw: raw.replace(b'"lon":-0.5', b'"lon":NaN')), {"bad_line": 1, "missing": 1}),
    ],
)
def test_audit_reports_a_broken_line(made: Made, edit: Edit, found: dict[str, int]) -> None:
    made.lines[5] = edit(made.lines[5])
    made.write()
    assert made.audit().found == found


def test_audit_reports_a_line_of_invalid_utf8(made: Made) -> None:
    body = made.lines[5].rpartition(b',"crc":')[0].replace(b'"server":"host1"', b'"server":"\xff"')
    made.lines[5] = body + f',"crc":"{zlib.crc32(body):08x}"}}\n'.encode()
    made.write()
    assert made.audit().found == {"bad_line": 1, "missing": 1}


def test_audit_reports_a_truncated_file(made: Made) -> None:
    made.write(data=zstd(made.lines)[:-6])
    assert made.audit().found["broken_file"] == 1


def test_audit_reports_a_flipped_byte_in_a_file(made: Made) -> None:
    data = bytearray(zstd(made.lines))
    data[len(data) // 2] ^= 1
    made.write(data=bytes(data))
    whole = f"reports/date=2026-11-22/{SEGMENT.replace('-1.', '-2.')}"
    made.write(whole, zstd([]))
    result = made.audit()
    assert result.found["broken_file"] == 1
    assert result.examples["broken_file"] == [SEGMENT]


@pytest.mark.parametrize("name", [f"{SEGMENT}.tmp", "ledger.json", "9f3a0c12-1.jsonl.zst.open"])
def test_audit_reports_a_stray_file(made: Made, name: str) -> None:
    made.write()
    made.write(f"reports/date=2026-11-22/{name}", b"")
    assert made.audit().found == {"stray": 1}


def test_audit_reports_a_leftover_in_open(made: Made) -> None:
    made.write()
    made.write("open/9f3a0c12-2.jsonl.zst.open", b"")
    assert made.audit().found == {"leftover": 1}


def test_audit_beside_a_running_server_reads_open_segments_once(made: Made) -> None:
    """A segment may be sealed between the look into open/ and the one into reports/."""
    made.write("open/9f3a0c12-1.jsonl.zst.open", zstd([*made.lines, b"x" * 100_000])[:-4])
    made.write()
    result = made.audit(live=True)
    assert result.failures() == []
    assert result.of_this_run == 6


def test_a_segment_that_is_sealed_while_the_audit_runs_is_read_all_the_same(made: Made) -> None:
    path = made.write("open/9f3a0c12-1.jsonl.zst.open")
    with path.open("rb") as growing:
        path.rename(made.write())
        assert list(read_lines(path, growing)) == made.lines


def test_audit_of_nothing_at_all_misses_every_acked_report(made: Made) -> None:
    assert made.audit().found == {"missing": 6}


def test_digest_sees_every_change(made: Made) -> None:
    path = made.write()
    before = digest(made.data_dir)
    assert before == digest(made.data_dir)
    path.write_bytes(zstd(made.lines[::-1]))
    assert before != digest(made.data_dir)


@pytest.mark.parametrize(
    ("size", "low", "high"), [("small", 500, 1000), ("medium", 5000, 7000), ("large", 25000, 35000)]
)
def test_reports_follow_from_their_id_and_differ(size: str, low: int, high: int) -> None:
    reports, again = Reports(1, size), Reports(1, size)
    ids = [f"{RUN}-0-{number}" for number in range(50)]
    bodies = [reports.body(report_id) for report_id in ids]
    assert bodies == [again.body(report_id) for report_id in ids]
    assert len({body.partition(b'"hosts"')[2] for body in bodies}) > 25
    assert all(low < len(body) < high and b"\n" not in body for body in bodies)
    assert [reports.differs(report_id, stored_report(again, report_id)) for report_id in ids] == [""] * len(ids)
    assert reports.differs(ids[0], stored_report(reports, ids[1])) == "clientId"
    assert set(SHAPES) == {"small", "medium", "large"}


@pytest.mark.parametrize(
    ("outcome", "fate"),
    [
        (200, Fate.ACKED),
        (400, Fate.REJECTED),
        (429, Fate.REJECTED),
        (500, Fate.UNKNOWN),
        (503, Fate.UNKNOWN),
        ("closed", Fate.UNKNOWN),
        ("cut", Fate.UNKNOWN),
        ("timeout", Fate.UNKNOWN),
        ("garbage", Fate.UNKNOWN),
        ("refused", Fate.UNSENT),
    ],
)
def test_fate_of_a_report_follows_from_the_outcome(outcome: int | str, fate: Fate) -> None:
    assert fate_of(outcome) is fate


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


def load_against(answers: list[bytes], *, batch: int = 0, log: Path | None = None) -> tuple[Load, list[bytes], Ledger]:
    """One client against a server that gives these answers in turn; b"" and CUT close; the last goes on for ever."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                bodies.append(await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0])))
                reply = answers[min(len(bodies), len(answers)) - 1]
                for part in (reply[:7], reply[7:]):
                    writer.write(part)
                    await asyncio.sleep(0)
                if reply in (b"", CUT):
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def run() -> Load:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = Load(f"http://127.0.0.1:{port}", SMALL, ledger, batch=batch, log=file)
        await load.run(0.5)
        server.close()
        return load

    ledger = Ledger(RUN, 1)
    with Path(log or os.devnull).open("w") as file:
        return asyncio.run(run()), bodies, ledger


def test_client_sorts_every_answer_and_never_sends_a_report_twice(tmp_path: Path) -> None:
    answers = [
        accepted(1),
        answer(503, b"{}", b"Retry-After: 1\r\n"),
        b"",
        accepted(1),
        CUT,
        answer(400, b"{}", b"Connection: close\r\n"),
        b"",
        accepted(1),
    ]
    load, bodies, ledger = load_against(answers, log=tmp_path / "log")
    sent = len(bodies)
    others = {503: 1, "closed": 2, "cut": 1, 400: 1}
    assert load.tally.requests == {200: sent - 5, **others}
    assert load.tally.dropped_total == 2  # the last b"" came on a fresh connection
    assert load.tally.anomalies_total == 0
    assert len({json.loads(body)["clientId"] for body in bodies}) == sent == len(ledger.fates[0])
    assert list(ledger.fates[0][:8]) == [Fate.ACKED, *[Fate.UNKNOWN] * 2, Fate.ACKED, 0, Fate.REJECTED, 0, Fate.ACKED]
    logged = [json.loads(one) for one in (tmp_path / "log").read_text().splitlines()]
    assert [one["outcome"] for one in logged[:8]] == [200, 503, "closed", 200, "cut", 400, "closed", 200]
    assert [one["id"] for one in logged] == [f"{RUN}-0-{number}" for number in range(sent)]


def test_client_sends_batches_and_finds_a_200_that_accepts_less() -> None:
    load, bodies, _ = load_against([accepted(3), accepted(2), answer(503, b""), b"SSH-2.0\r\n\r\n"], batch=3)
    assert [json.loads(one)["clientId"] for one in bodies[1].split(b"\n")] == [f"{RUN}-0-{n}" for n in (3, 4, 5)]
    assert load.tally.reports[200] == 6
    assert load.tally.requests["garbage"] == len(bodies) - 3
    assert "accept 3" in load.tally.anomalies[0]
    assert "Retry-After" in load.tally.anomalies[1]


def test_client_goes_on_when_nobody_listens() -> None:
    ledger = Ledger(RUN, 2)
    load = Load("http://127.0.0.1:1", SMALL, ledger)
    asyncio.run(load.run(0.1))
    assert set(load.tally.requests) == {"refused"}
    assert 2 <= load.tally.requests["refused"] <= 12
    assert set(ledger.fates[0] + ledger.fates[1]) == {Fate.UNSENT}


STAND_IN = """
import http.server, os, signal, subprocess, sys, threading
bind, data_dir, mode = sys.argv[sys.argv.index("--bind") + 1], sys.argv[sys.argv.index("--data-dir") + 1], sys.argv[1]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"accepted": 1}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(bind.rpartition(":")[2])), Handler)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "netwatch: writer"])
def stop(*_):
    if mode != "orphan":
        child.kill()
        child.wait()
    if mode == "leftover":
        os.makedirs(data_dir + "/open")
        open(data_dir + "/open/x-1.jsonl.zst.open", "w").close()
    os._exit(3 if mode == "exit" else 0)
signal.signal(signal.SIGTERM, stop)
print(f"netwatch: listening on http://{bind}, writing to {data_dir}", flush=True)
server.serve_forever()
"""


def stand_in(mode: str) -> list[str]:
    return [sys.executable, "-c", STAND_IN, mode]


@pytest.mark.parametrize(
    ("mode", "failure"),
    [("good", ""), ("exit", "stop: exit code 3"), ("leftover", "stop: 1 left in open/"), ("orphan", "orphan: ")],
)
def test_stop_of_the_server_is_judged(tmp_path: Path, mode: str, failure: str) -> None:
    failures: list[str] = []
    server = Server(stand_in(mode), tmp_path, failures)
    server.start()
    assert server.wait_ready()
    below = descendants(server.pid)
    assert len(below) == 1
    server.stop()
    assert [one.startswith(failure) for one in failures] == [True] * bool(failure)
    assert wait_until(lambda: not below[0].alive(), 5)


def test_server_that_ends_by_itself_is_a_failure(tmp_path: Path) -> None:
    failures: list[str] = []
    server = Server([sys.executable, "-c", "raise SystemExit(2)"], tmp_path, failures)
    server.start()
    assert not server.wait_ready()
    assert failures == ["server: ended by itself with exit code 2"]


def test_storm_of_kills_restarts_the_server_and_reports_what_is_left(tmp_path: Path) -> None:
    failures: list[str] = []
    server = Server(stand_in("good"), tmp_path, failures)
    server.start()
    for kind in ("all", "stop"):
        storm = Storm(server, kind, 0.01, seed=1)
        first = server.pid
        storm.end()
        storm.run()
        assert storm.kills == {}
        assert server.wait_ready()
        storm.strike(kind)
        assert storm.kills == {kind: 1}
        assert server.pid != first
        assert server.wait_ready()
    assert failures == []
    left = server.kill_supervisor()
    assert [process.alive() for process in left] == [True]
    server.expect_end(left, 0.1)
    assert [one.startswith("orphan: ") for one in failures] == [True]


def test_a_pid_used_again_is_another_process() -> None:
    assert not Process(os.getpid(), "1", "").alive()


def test_whole_run_against_a_server_that_stores_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--serve", "--data-dir", str(tmp_path / "data"), "--clients", "4", "--duration", "0.3"]
    start_s = time.monotonic()
    code = main([*options, "--expect-only-200", "--json", str(tmp_path / "json")], stand_in("good"))
    assert code == 1
    summary = json.loads((tmp_path / "json").read_text())
    assert summary["audit"]["missing"] == summary["reports"]["sent"] > 10
    assert [failure.partition(":")[0] for failure in summary["failures"]] == ["missing"]
    assert "FAILED missing: " in capsys.readouterr().out
    assert time.monotonic() - start_s < 10
