"""What was answered 200 can be read by every reader, and what is JSON within the limits was answered 200."""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.cases import Case, cases, expected, forms, same, strict
from tests.system.conftest import Serve
from tests.system.server import ROOT, Server

READERS = ("duckdb", "polars", "pandas")


def of_form(form: str, body: bytes, case: Case) -> list[Any]:
    """The values that must be stored of a body."""
    if "line" in form:
        found = [expected(Case("", 0, line)) for line in body.split(b"\n")]
        return [value for value in found if value is not None]
    if "browser" not in form:
        value = expected(case)
        return [] if value is None else [value]
    try:
        value = strict(body)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        pass
    try:  # the array itself is a level that no line has
        return [strict(body[1:-1])] if form == "browser" else []
    except (ValueError, RecursionError):
        return []


def post_all(server: Server, all_cases: list[Case], pick: Callable[[int, str], bool]) -> tuple[list[Any], list[str]]:
    """Post every case in every form picked: the values that must be stored, and what was answered wrongly."""
    wanted: list[Any] = []
    wrong: list[str] = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for index, case in enumerate(all_cases):
        for form, (path, kind, body) in forms(case).items():
            if not pick(index, form):
                continue
            values = of_form(form, body, case)
            connection.request("POST", path, body, {"Content-Type": kind})
            response = connection.getresponse()
            content = response.read()
            if "browser" in form:
                allowed = {204} if values else {204, 400}
                ok = response.status in allowed
            else:
                answer = json.loads(content)
                ok = response.status == (200 if values else 400) and answer.get("accepted", 0) == len(values)
            if not ok:
                wrong.append(
                    f"{case.name}, as {form}: {response.status} {content[:200]!r}, expected {len(values)} stored"
                )
            wanted += values
    connection.close()
    return wanted, wrong


def name_of(report: Any) -> str:
    return str(report["url"] if "body" in report else report["clientId"])


def grouped(reports: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for report in reports:
        found.setdefault(name_of(report), []).append(report)
    return found


def unequal(stored: list[Any], wanted: list[Any]) -> list[str]:
    """The names under which not the same values stand in both."""
    ours, theirs = grouped(stored), grouped(wanted)
    wrong = []
    for name in ours.keys() | theirs.keys():
        one, two = ours.get(name, []), theirs.get(name, [])
        left = list(two)
        for value in one:
            match = next((index for index, other in enumerate(left) if same(value, other)), None)
            if match is None:
                break
            del left[match]
        if left or len(one) != len(two):
            wrong.append(f"{name}: stored {str(one)[:300]}, sent {str(two)[:300]}")
    return wrong


def read_with(tool: str, server: Server) -> dict[str, Any]:
    pattern = str(server.data_dir / "reports/*/*.jsonl.zst")
    command = [sys.executable, str(Path(__file__).with_name("read_with.py")), tool, pattern]
    read = subprocess.run(command, capture_output=True, timeout=100, check=False, cwd=ROOT)
    assert read.returncode == 0, read.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(read.stdout)
    return found


@pytest.mark.timeout(300)
def test_what_was_answered_200_reads_back_equal_in_every_reader_and_nothing_else_is_stored(
    serve: Serve, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    server = serve("--workers", "1")
    whole = list(cases(1, in_one_place=False))
    some = whole if full_sweeps else list(cases(7, in_one_place=True))
    thinned(len(whole), len(some), "hostile reports")
    names = list(forms(some[0]))

    def pick(index: int, form: str) -> bool:
        return full_sweeps or form == "object" or form == names[index % len(names)]

    thinned(len(names), len(names) if full_sweeps else 2, "forms of a body in which each hostile report is sent")
    wanted, wrong = post_all(server, some, pick)
    assert not wrong, "\n".join(wrong[:40])
    server.stop()
    lines = server.stored()
    stored = [line["report"] for line in lines]
    differing = unequal(stored, wanted)
    assert not differing, "\n".join(differing[:40])
    assert Counter(map(name_of, stored)) == Counter(map(name_of, wanted))
    assert len({line["id"] for line in lines}) == len(lines) > len(some) / 3
    by_id = {line["id"]: line["report"] for line in lines}

    files = [str(path) for path in server.sealed_files()]
    for path in files:
        text = subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True, timeout=60).stdout
        text.decode()
        ids = subprocess.run(["jq", "-r", ".id"], input=text, capture_output=True, check=True, timeout=60).stdout
        assert ids.decode().split() == [json.loads(line)["id"] for line in text.splitlines()]
        for line in text.splitlines():
            strict_line = json.loads(line, object_pairs_hook=without_duplicates)
            assert max(line) < 256
            assert strict_line["report"] is not None
    missing = [tool for tool in READERS if not importlib.util.find_spec(tool)]
    thinned(len(READERS), len(READERS) - len(missing), f"readers ({', '.join(missing)} not installed)")
    for tool in READERS:
        if tool not in missing:
            found = read_with(tool, server)
            assert found.keys() == by_id.keys(), tool
            if tool != "duckdb":  # Polars' text of an object loses escapes, pandas' doubles their last digit
                continue
            differing = [key for key in by_id if not same(found[key], by_id[key])]
            assert differing == [], (tool, [(str(by_id[key])[:300], str(found[key])[:300]) for key in differing[:5]])


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found
