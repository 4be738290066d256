"""What was compacted is asked like what was not: by its name's two times, and each line once."""

from __future__ import annotations

import json

import pytest

from netwatch.bucket import Bucket
from netwatch.cli import main
from tests.bucket.conftest import LINES, MakeData
from tests.bucket.shipping import ship
from tests.bucket.store import KEYS, Store, objects, paths
from tests.bucket.test_compact import compact

TIMES = ("10:02", "10:24", "10:51", "11:30", "11:31")


@pytest.fixture
def compacted(make_data: MakeData, bucket: Bucket) -> Bucket:
    """A bucket with five files of two hours, which are two objects."""
    for number, at in enumerate(TIMES):
        data = make_data(1, first=number, received_at=f"2026-11-22T{at}:00.000000Z")
    assert ship(data, bucket) == 0
    small = objects(bucket)
    assert compact(bucket) == 0
    assert len([path for path in paths(bucket) if path.startswith("date=")]) == 2
    path, content = next(iter(small.items()))  # as one that an interrupted compaction left
    bucket.open().put(path, content)
    return bucket


SPANS = [
    ("10:00", "12:00", 5),
    ("10:30", "12:00", 3),
    ("10:51", "10:52", 1),
    ("10:00:00", "10:02:01", 1),
    ("10:25", "10:50", 0),
    ("11:00:00", "11:30:30", 1),
]


@pytest.mark.parametrize(("since", "until", "files"), SPANS)
def test_each_line_is_counted_once(
    since: str, until: str, files: int, compacted: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert compacted.endpoint
    where = ["--bucket", str(compacted), "--endpoint", compacted.endpoint, "--region", "us-east-1", "--format", "json"]
    span = ["--since", f"2026-11-22T{since}Z", "--until", f"2026-11-22T{until}Z"]
    assert main(["query", "SELECT count(*) AS n FROM reports", *span, *where]) == 0
    assert json.loads(capsys.readouterr().out) == {"n": files * LINES}


@pytest.mark.soak
def test_clickhouse_counts_alike(compacted: Bucket, store: Store, tmp_path: object) -> None:
    session = pytest.importorskip("chdb.session", reason="scripts/setup test readers").Session(f"{tmp_path}/ch")
    from netwatch.query.questions import statements

    url = f"{store.endpoint}/{compacted.name}/{compacted.prefix}/date=*/reports-*.jsonl.zst"
    session.query(
        f"CREATE NAMED COLLECTION netwatch AS url = '{url}', access_key_id = '{KEYS['AWS_ACCESS_KEY_ID']}', "
        f"secret_access_key = '{KEYS['AWS_SECRET_ACCESS_KEY']}'"
    )
    for statement in statements("views", "clickhouse").split(";\n\n"):
        session.query(statement)
    count = "SELECT count() AS n FROM reports(since = {since:String}, until = {until:String})"
    for since, until, files in SPANS:
        span = {"since": f"2026-11-22T{since}Z", "until": f"2026-11-22T{until}Z"}
        assert json.loads(str(session.query(count, "JSONEachRow", params=span)))["n"] == files * LINES, (since, until)
    session.close()
