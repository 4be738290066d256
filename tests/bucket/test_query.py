"""`netwatch query --bucket` and ClickHouse over a real store: the same answers as over the data directory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from netwatch.bucket import Bucket
from netwatch.cli import main
from netwatch.query import sources
from netwatch.query.questions import questions, statements
from netwatch.reports import Lines
from tests.bucket.gateway import Gateway, cuts, says
from tests.bucket.shipping import ship
from tests.bucket.store import KEYS, Store
from tests.query.conftest import data as data
from tests.query.expected import alike, answers, stored_lines
from tests.stored import zstd

UNTIL_S = int(time.time()) + 1800
LINES = Lines("host1", max_report_bytes=1 << 20, max_depth=32)


def text(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


@pytest.fixture
def shipped(bucket: Bucket, data: Path) -> Bucket:
    """The bucket, with what two servers stored in it."""
    assert ship(data, bucket) == 0
    return bucket


def flags(bucket: Bucket, endpoint: str | None = None) -> list[str]:
    there = endpoint or bucket.endpoint
    assert there
    return ["--bucket", str(bucket), "--endpoint", there, "--region", "us-east-1", "--format", "json"]


def test_a_bucket_is_asked_like_a_directory(shipped: Bucket, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    expected = answers(stored_lines(data), UNTIL_S)
    for name in questions():
        assert main(["query", name, "--since", text(UNTIL_S - 7200), "--until", text(UNTIL_S), *flags(shipped)]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert alike(map(json.loads, printed.out.splitlines())) == alike(expected[name]), name


def test_only_objects_that_can_hold_it_are_fetched(
    bucket: Bucket, door: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were put there just now, so what was received since an hour ago may be in those of today, by their names."""
    now_s = time.time()
    at = [time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(now_s - ago_s)) for ago_s in (3 * 86400, 3600, 1800, -600)]
    keys = [f"date={name[:10]}/reports-{name}.000Z-0a1b2c3d-00000{n}.jsonl.zst" for n, name in enumerate(at)]
    store = bucket.open()
    for key in [*keys, f"date={at[2][:10]}/other.jsonl.zst", f"{keys[2]}.part", "notes.txt"]:
        store.put(key, b"x")
    found = sources.bucket_keys(store, sources.Span(now_s - 1200, now_s))
    assert list(found.items()) == [(keys[1], 1), (keys[2], 1)]
    found = sources.bucket_keys(store, sources.Span(now_s + 3600, None))  # later than they were put there
    assert list(found) == []
    assert list(sources.bucket_keys(store, sources.Span())) == keys

    asked = ["query", "SELECT count(*) AS n FROM lines", *flags(bucket, door.endpoint)]
    assert main([*asked, "--since", text(now_s - 1200), "--until", text(now_s - 900)]) == 1
    assert "A file is broken, netwatch compact, or netwatch ship --once --again at the host" in capsys.readouterr().err
    fetched = len(door.requests)
    assert main([*asked, "--since", text(now_s + 3600)]) == 1
    assert "There is no sealed file in s3://telemetry/" in capsys.readouterr().err
    assert len(door.requests) - fetched <= 3, "days are listed, and nothing is fetched"


def test_what_a_slow_server_sealed_late_is_found(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    """By the time in its name it would have been sealed an hour before these lines came."""
    now_s = time.time()
    lines = LINES.line(b'{"clientId":"late","hosts":[]}', int((now_s - 60) * 1e9))
    name = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(now_s - 3600))
    store = bucket.open()
    store.put(f"date={name[:10]}/reports-{name}.000Z-0a1b2c3d-000001.jsonl.zst", zstd([lines]))
    asked = ["query", "SELECT client FROM reports", *flags(bucket), "--since", text(now_s - 600)]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out) == {"client": "late"}


def test_a_bucket_that_cannot_be_read_is_said(
    bucket: Bucket, shipped: Bucket, door: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    asked = ["query", "servers", *flags(shipped, door.endpoint)]
    door.plan("GET", says("403 Forbidden", "AccessDenied"), times=1)
    assert main(asked) == 1
    assert "AccessDenied" in capsys.readouterr().err
    door.plan("GET", lambda request, forward: forward(request), times=4)  # as many days are listed
    door.plan("GET", says("404 Not Found", "NoSuchKey"), times=1)
    assert main(asked) == 1
    assert "is gone from the bucket, compacted or deleted meanwhile: ask again" in capsys.readouterr().err
    door.plan("GET", lambda request, forward: forward(request), times=4)
    door.plan("GET", says("403 Forbidden", "AccessDenied"), times=1)
    assert main(asked) == 1
    said = capsys.readouterr().err
    assert said.startswith("netwatch: Cannot read date=")
    assert "403 Forbidden, AccessDenied" in said
    door.plan("GET", cuts, times=1)  # what obstore tries again
    assert main(asked) == 0
    capsys.readouterr()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(asked) == 1
    said = capsys.readouterr().err
    assert said.startswith("netwatch: Cannot list")
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert main(["query", "servers", *flags(shipped, "http://127.0.0.1:1")]) == 1
    assert "Check the endpoint, http://127.0.0.1:1." in capsys.readouterr().err


@pytest.mark.soak
def test_clickhouse_gives_the_same_answers(shipped: Bucket, store: Store, data: Path, tmp_path: Path) -> None:
    session = pytest.importorskip("chdb.session", reason="scripts/setup test readers").Session(str(tmp_path / "ch"))
    url = f"{store.endpoint}/{shipped.name}/{shipped.prefix}/date=*/reports-*.jsonl.zst"
    session.query(
        f"CREATE NAMED COLLECTION netwatch AS url = '{url}', access_key_id = '{KEYS['AWS_ACCESS_KEY_ID']}', "
        f"secret_access_key = '{KEYS['AWS_SECRET_ACCESS_KEY']}'"
    )
    for statement in statements("views", "clickhouse").split(";\n\n"):
        session.query(statement)
    span = {"since": text(UNTIL_S - 7200), "until": text(UNTIL_S)}
    expected = answers(stored_lines(data), UNTIL_S)
    for name, question in questions("clickhouse").items():
        printed = str(session.query(question.sql, "JSONEachRow", params=span))
        assert alike(map(json.loads, printed.splitlines())) == alike(expected[name]), name
    # What the names exclude is listed, and not read.
    count = "SELECT count() AS n FROM lines(since = {since:String}, until = {until:String}) FORMAT JSONEachRow"
    shipped.open().put("date=2026-11-10/reports-2026-11-10T10-00-00.000Z-0a1b2c3d-000001.jsonl.zst", b"x")
    assert json.loads(str(session.query(count, params=span)))["n"] == len(stored_lines(data))
    with pytest.raises(RuntimeError):
        session.query(count, params=span | {"since": "2026-11-10T00:00:00Z"})
    session.close()
