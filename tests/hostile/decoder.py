"""What the fuzzer feeds: all between a body's bytes and its lines, without a socket, and what must hold."""

from __future__ import annotations

import json
import zlib
from collections.abc import Coroutine
from typing import Any, Final

from netwatch.errors import Refused, Rejected
from netwatch.http import body, encoding
from netwatch.reports import Lines, is_whole

MAX_BODY_BYTES: Final = 256 * 1024
MAX_REPORTS: Final = 100
ENCODINGS: Final = ("identity", "gzip", "zstd", "deflate")
KINDS: Final = ("application/json", "application/x-ndjson", "application/reports+json")
_LINES: Final = Lines("fuzzed", max_report_bytes=64 * 1024, max_depth=32)


def check(data: bytes) -> int:
    """Decode a body: the first byte says how it is encoded and what it holds. Gives the number of lines made.

    Only a refusal may come out, and each line must be one line of strict JSON in UTF-8.
    """
    if not data:
        return 0
    kind = KINDS[data[0] % len(KINDS)]
    made = 0
    try:
        raw = _run(encoding.decode(data[1:], ENCODINGS[data[0] // 16 % 4], MAX_BODY_BYTES, lambda size: None))
        assert len(raw) <= MAX_BODY_BYTES
        reports = _run(body.split(raw, kind, MAX_REPORTS))
    except Refused:
        return 0
    assert len(reports) <= MAX_REPORTS
    for report in reports:
        try:
            if kind in body.BROWSER:
                line = _LINES.browser_line(report, 1_700_000_000_000_000_000, "", b"", ("all",))
            else:
                line = _LINES.line(report, 1_700_000_000_000_000_000)
        except Rejected as error:
            str(error.pointer).encode()
            continue
        demand_line(line)
        made += 1
    return made


def demand_line(line: bytes) -> None:
    """One line, UTF-8, strict JSON without duplicate members, with its checksum."""
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert is_whole(line[:-1])
    assert int(line[-11:-3], 16) == zlib.crc32(line[:-19])
    text = line.decode()  # raises UnicodeDecodeError, which nothing here catches
    value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_duplicates)
    json.dumps(value, ensure_ascii=False).encode()
    assert isinstance(value["report"], dict)
    _demand(value["report"], 32)


def _demand(value: Any, levels: int) -> None:
    assert not isinstance(value, int) or -(2**63) <= value < 2**64
    assert not isinstance(value, float) or value not in (float("inf"), float("-inf"))
    if isinstance(value, dict | list):
        assert levels
        for member in value.values() if isinstance(value, dict) else value:
            _demand(member, levels - 1)


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} in a line")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a member stands twice in a line"
    return found


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result; it waits for nothing but its turn."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
