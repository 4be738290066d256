from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from netwatch.errors import Refused
from netwatch.http import body
from tests.http.door import JSON, NDJSON, REPORT, Door, code_of, problem_of


@pytest.mark.parametrize("kind", sorted(body.JSON | body.NDJSON))
@pytest.mark.parametrize("form", ["{}", "{};charset=utf-8", " {} ; charset=UTF-8; x=y", "{};", "upper"])
def test_media_types_are_taken_with_parameters(kind: str, form: str) -> None:
    header = kind.upper() if form == "upper" else form.format(kind)
    assert Door().post(REPORT, header).status_code == 200


def test_without_a_media_type_it_is_json() -> None:
    assert Door().post(REPORT, None).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/html",
        "application/xml",
        "application/x-protobuf",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "json",
        ";",
        "*/*",
    ],
)
def test_another_media_type_is_415_with_what_is_taken(kind: str) -> None:
    door = Door()
    result = door.post(REPORT, kind)
    assert (result.status_code, code_of(result)) == (415, "unsupported_media_type")
    assert problem_of(result)["taken"] == sorted(body.JSON | body.NDJSON)
    assert door.link.stored == []


@pytest.mark.parametrize(
    ("kind", "sent", "reports"),
    [
        (JSON, b"[1,2]", [b"1", b"2"]),
        (JSON, b'[ "," , {"a": [1,2]} ]', [b'","', b'{"a": [1,2]}']),
        (JSON, b"{}", [b"{}"]),
        (JSON, b" " * 100 + b"[1]", [b"1"]),
        (JSON, b" " * 100 + b"{}", [b" " * 100 + b"{}"]),
        ("text/plain", b"[1]", [b"1"]),
        (NDJSON, b"[1]", [b"[1]"]),
        (NDJSON, b"1\n2", [b"1", b"2"]),
        (NDJSON, b"\n1\n\n2\n\n", [b"1", b"2"]),
        (NDJSON, b"\r\n1\r\n \r\n2\r\n", [b"1", b"2"]),
        (NDJSON, b"1\r2", [b"1\r2"]),
        (NDJSON, b"\x0b1\n \n\x0c", [b"\x0b1", b"\x0c"]),
        (NDJSON, b"\t\n\x0b\n\x0c2", [b"\x0b", b"\x0c2"]),
    ],
)
@pytest.mark.parametrize("max_reports", [2, 3, 10, 100])
def test_a_body_is_taken_apart_alike_below_and_near_its_limit(
    kind: str, sent: bytes, reports: list[bytes], max_reports: int
) -> None:
    assert [bytes(report).strip(b"\r\n") for report in asyncio.run(body.split(sent, kind, max_reports))] == reports


@pytest.mark.parametrize("sent", [b"[1,2,3]", b"[1,2,null]", b"[[],{},[],[]]", b"[" + b"1," * 5000 + b"1]"])
def test_the_elements_of_an_array_are_counted_before_they_are_kept(sent: bytes) -> None:
    with pytest.raises(Refused) as caught:
        asyncio.run(body.split(sent, JSON, 2))
    assert caught.value.code == "too_many_reports"


def test_commas_inside_of_reports_are_not_counted() -> None:
    sent = b'[{"a":[1,2,3,4],"b":",,,,"},[1,2,3,4]]'
    assert len(asyncio.run(body.split(sent, JSON, 2))) == 2


SIZE = 20 * 1024 * 1024
HOSTILE = {
    "array of numbers": (JSON, b"[", b"1,", b"1]"),
    "array of arrays": (JSON, b"[", b"[],", b"1]"),
    "array in an array": (JSON, b"[[", b"[],", b"1]]"),
    "report of arrays": (JSON, b'{"x":[', b"[],", b"1]}"),
    "report of objects": (JSON, b'{"x":[', b"{},", b"1]}"),
    "report of arrays, and one more": (JSON, b'{"x":[', b"[],", b"1]}{}"),
    "report of arrays, and what looks like one more": (JSON, b'{"x":["}{",', b"[],", b"1]}"),
    "report of numbers, and one more": (JSON, b'{}{"x":[', b"1,", b"1]}"),
    "objects one after the other": (JSON, b"", b"{}", b"{}"),
    "objects that stay open": (JSON, b"{}", b'{"":', b""),
    "one string of objects": (JSON, b'{"x":"', b"}{", b'"}'),
    "strings of objects": (JSON, b'{"x":[', b'"}{",', b'""]}'),
    "samples": (JSON, b'{"hosts":[{"history":[', b'{"t":1},', b'{"t":1}]}]}'),
    "lines": (NDJSON, b"", b"11\n", b""),
    "large lines": (NDJSON, b'{"x":[%b1]}\n' % (b"[]," * 600_000) * 3, b"\n", b""),
    "lines of extreme numbers": (
        NDJSON,
        b'{"clientId":"c","hosts":[],"x":[%b1]}\n' % (b"1e308," * 330_000) * 3,
        b"\n",
        b"",
    ),
    "lines of extreme latencies": (
        NDJSON,
        b'{"clientId":"c","hosts":[{"name":"","url":"","status":"","history":[%b{"t":1}]}]}\n'
        % (b'{"t":1,"latency":1e308},' * 80_000)
        * 3,
        b"\n",
        b"",
    ),
    "blank lines": (NDJSON, b"", b"\n", b""),
    "carriage returns": (NDJSON, b"", b"\r\n", b""),
    "spaces": (JSON, b"", b" ", b""),
}
PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from tests.http.door import Door, Exchange

def status(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

async def send(kind, sent):
    exchange = Exchange(door, [sent], size=len(sent), kind=kind)
    running = asyncio.create_task(exchange.run())
    longest_s, last_s = 0, time.process_time()
    while not running.done():
        await asyncio.sleep(0)
        now_s = time.process_time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return exchange.status, longest_s

door = Door()
kind, size = sys.argv[1], int(sys.argv[2])
start, again, end = (bytes.fromhex(part) for part in sys.stdin.read().split(","))
sent = start + again * ((size - len(start) - len(end)) // len(again)) + end
asyncio.run(send(kind, b"[]"))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
print(*asyncio.run(send(kind, sent)), status("VmHWM") - before)
"""


@pytest.mark.parametrize("hostile", HOSTILE)
def test_row_20_a_hostile_body_costs_no_more_memory_and_time_than_another(hostile: str) -> None:
    kind, *parts = HOSTILE[hostile]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(SIZE)],
        input=",".join(part.hex() for part in parts),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    status, longest_s, grown_kib = run.stdout.split()
    assert status in ("400", "413")
    assert float(longest_s) < 0.5, "the other requests wait so long"
    assert int(grown_kib) * 1024 < 4 * SIZE
