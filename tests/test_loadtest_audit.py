"""The audit is believed when it says that nothing was lost; here it is shown what must not be, and reports it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netwatch.loadtest.audit import Audit, audit, digest, read_lines
from netwatch.loadtest.ledger import Fate, Ledger, mark_of
from netwatch.loadtest.reports import Reports
from tests.stored import SEGMENT, line, stored_report, with_crc, zstd

RUN = "0a1b2c3d"
SMALL = Reports(1, {"small": 1})

Edit = Callable[[bytes], bytes]


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
    made.write(f"reports/date=2026-11-22/{SEGMENT.replace('-1.', '-2.')}", zstd([made.line(f"{RUN}-1-1")]))
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


def _move_hosts(report: dict[str, Any]) -> None:
    report["geo"]["hosts"] = report["hosts"]
    report["hosts"] = None


@pytest.mark.parametrize(
    "alter",
    [
        lambda report: report["hosts"][1]["history"][2].update(t=report["hosts"][1]["history"][2]["t"] + 1),
        lambda report: report.update(host=report.pop("hosts")),
        lambda report: report.update(hosts=None),
        lambda report: report.update(hosts=[report["hosts"]]),
        lambda report: report["geo"].update(city="Paris"),
        _move_hosts,
    ],
)
def test_audit_compares_every_report_also_one_whose_hosts_it_has_seen(
    made: Made, alter: Callable[[dict[str, Any]], object]
) -> None:
    """Hosts are decoded once for all reports that share them: what is altered the second time must be seen too."""
    first = made.reports.payload(f"{RUN}-0-0")
    number = next(number for number in range(3, 100_000) if made.reports.payload(f"{RUN}-0-{number}") is first)
    made.ledger.settle(0, made.ledger.take(0, number - 2), Fate.UNKNOWN)
    report = stored_report(made.reports, f"{RUN}-0-{number}")
    made.lines.append(line(report))
    made.write()
    assert made.audit().failures() == []
    alter(report)
    made.lines[-1] = line(report)
    made.write()
    assert made.audit().found == {"altered": 1}


def test_audit_reports_hosts_that_are_altered_the_same_way_twice(made: Made) -> None:
    first = made.reports.payload(f"{RUN}-0-0")
    number = next(number for number in range(3, 100_000) if made.reports.payload(f"{RUN}-0-{number}") is first)
    made.ledger.settle(0, made.ledger.take(0, number - 2), Fate.UNKNOWN)
    for place, report_id in ((0, f"{RUN}-0-0"), (6, f"{RUN}-0-{number}")):
        report = stored_report(made.reports, report_id)
        report["hosts"][0]["status"] = "fine"
        made.lines[place : place + 1] = [line(report)]
    made.write()
    assert made.audit().found == {"altered": 2}


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


def test_audit_reports_a_stored_report_that_is_bad(made: Made) -> None:
    made.ledger.settle(1, range(3), Fate.ACKED, [0, 2])
    made.write()
    assert made.audit().found == {"unexpected": 2}


def test_audit_lets_other_runs_and_unknown_reports_be(made: Made) -> None:
    made.ledger.settle(0, range(2), Fate.UNKNOWN)
    made.lines[1] = made.line("ffffffff-0-0")
    made.write()
    result = made.audit()
    assert result.failures() == []
    assert (result.of_others, result.unknown_stored) == (1, 1)


@pytest.mark.parametrize("client", ["agent-7", None])
def test_audit_of_a_running_server_lets_other_senders_be(made: Made, client: str | None) -> None:
    other = line({"clientId": client} if client else {"type": "csp-violation", "body": {}})
    made.lines.append(
        with_crc(
            other.decode().rpartition(',"crc"')[0].replace('"kind":"report"', '"kind":"csp-violation"', not client)
        )
    )
    made.write()
    result = made.audit(live=True)
    assert result.failures() == []
    assert result.of_others == 1
    assert made.audit().found == {"unexpected": 1}


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


def test_audit_reports_a_file_that_is_no_single_frame_with_a_checksum(made: Made) -> None:
    two_frames = zstd(made.lines[:3]) + zstd(made.lines[3:])
    no_checksum = subprocess.run(
        ["zstd", "-c", "--no-check"], input=b"".join(made.lines), capture_output=True, check=True
    ).stdout
    for data in (two_frames, no_checksum, zstd(made.lines) + bytes.fromhex("502a4d1804000000abcdabcd")):
        made.write(data=data)
        assert made.audit().found == {"broken_file": 1}


def test_audit_reports_a_sealed_file_in_another_days_directory(made: Made) -> None:
    made.write(f"reports/date=2026-11-23/{SEGMENT}")
    assert made.audit().found == {"stray": 1, "missing": 6}


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_audit_reports_what_is_no_file_and_waits_for_none(made: Made, kind: str) -> None:
    path = made.write()
    other = path.with_name(SEGMENT.replace("-1.", "-2."))
    if kind == "symlink":
        other.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(other)
    else:
        other.mkdir()
        (other / "file").touch()
    assert made.audit().found == {"stray": 1}


def test_audit_reports_an_id_that_two_lines_share(made: Made) -> None:
    first = json.loads(made.lines[0])["id"]
    made.lines[4] = line(stored_report(made.reports, f"{RUN}-1-1"), first)
    made.write()
    assert made.audit().found == {"shared_id": 1}


def test_audit_reports_a_line_under_another_id_than_was_answered(made: Made) -> None:
    for index, stored in enumerate(made.lines):
        made.ledger.marks[index // 3][index % 3] = mark_of(json.loads(stored)["id"])
    made.write()
    assert made.audit().found == {}
    made.ledger.marks[1][1] = mark_of("another")
    assert made.audit().found == {"wrong_id": 1}


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


@pytest.mark.parametrize(
    ("keys_forgotten", "same_id", "doubled"), [(False, True, 1), (True, True, 0), (False, False, 1), (True, False, 1)]
)
def test_audit_lets_a_repeat_be_only_under_the_same_id_where_keys_were_forgotten(
    made: Made, keys_forgotten: bool, same_id: bool, doubled: int
) -> None:
    made.lines.append(made.lines[3] if same_id else made.line(f"{RUN}-1-0"))
    made.write()
    result = audit(made.data_dir, made.ledger, made.reports, keys_forgotten=keys_forgotten)
    assert (result.found["doubled"], result.repeated) == (doubled, 1 - doubled)


def test_audit_of_nothing_at_all_misses_every_acked_report(made: Made) -> None:
    assert made.audit().found == {"missing": 6}


def test_digest_sees_every_change(made: Made) -> None:
    path = made.write()
    before = digest(made.data_dir)
    assert before == digest(made.data_dir)
    path.write_bytes(zstd(made.lines[::-1]))
    assert before != digest(made.data_dir)


def test_a_file_that_grows_is_read_to_its_last_line_wherever_it_ends(tmp_path: Path) -> None:
    """The stock tool of Debian 12 alone keeps the last lines to itself in one of a hundred of them."""
    path = tmp_path / "0a1b2c3d-000001.jsonl.zst.open"
    numbers = random.Random(5)
    frame = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    written = 0
    with path.open("ab", buffering=0) as file:
        for commit in range(700):
            count = numbers.randint(1, 5)
            lines = [b'{"id":"%032x","report":{%b}}\n' % (numbers.getrandbits(128), b"." * 500) for _ in range(count)]
            file.write(frame.compress(b"".join(lines)) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            written += count
            if commit % 5 == 0:
                with path.open("rb") as growing:
                    assert len(list(read_lines(path, growing))) == written
