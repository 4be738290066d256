"""The views over s3Cluster, as far as chdb goes, which cannot listen: planned for a cluster, and what a host is asked.

What it is not: a run on a cluster. No host of one is here that could answer.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netwatch.bucket import Bucket
from netwatch.query.questions import questions, statements
from tests.bucket.conftest import LINES, MakeData
from tests.bucket.shipping import ship
from tests.bucket.store import KEYS, Store

pytestmark = pytest.mark.soak

SPAN = {"since": "2026-11-22T10:00:00Z", "until": "2026-11-22T11:00:00Z"}
REVISION = 54449
"""Of the native protocol: the last one before both sides send more than this host reads."""


class Host(socketserver.ThreadingTCPServer):
    """A host of the cluster that greets, notes what it is asked, and hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port: int = self.server_address[1]
        self.received: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def asked(self) -> set[str]:
        found = re.findall(rb"SELECT [\x20-\x7e]+", b"".join(self.received))
        return {statement.decode() for statement in found}


class _Connection(socketserver.BaseRequestHandler):
    server: Host

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(65536)
            self.request.sendall(_hello())
            self.server.received.append(self.request.recv(1 << 20))


def _hello() -> bytes:
    """The packet 0: name, version, revision, time zone, display name, patch."""
    return (
        b"\0" + _text("ClickHouse") + b"".join(map(_number, (26, 9, REVISION))) + _text("UTC") + _text("host") + b"\1"
    )


def _text(text: str) -> bytes:
    return _number(len(text)) + text.encode()


def _number(number: int) -> bytes:
    """LEB128."""
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + _number(high) if high else bytes([low])


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened
        opened.shutdown()


@pytest.fixture
def session(host: Host, store: Store, bucket: Bucket, make_data: MakeData, tmp_path: Path) -> Iterator[Any]:
    """ClickHouse with the cluster ``one`` and the views over it, and three files in the bucket, one of another hour."""
    chdb = pytest.importorskip("chdb.session", reason="scripts/setup test readers")
    make_data(2)
    assert ship(make_data(1, first=10, received_at="2026-11-22T12:24:10.123456Z"), bucket) == 0
    config = tmp_path / "cluster.xml"
    replica = f"<replica><host>127.0.0.1</host><port>{host.port}</port></replica>"
    config.write_text(f"<clickhouse><remote_servers><one><shard>{replica}</shard></one></remote_servers></clickhouse>")
    opened = chdb.Session(f"{tmp_path}/ch?config-file={config}")
    url = f"{store.endpoint}/{bucket.name}/{bucket.prefix}/date=*/reports-*.jsonl.zst"
    opened.query(
        f"CREATE NAMED COLLECTION netwatch AS url = '{url}', access_key_id = '{KEYS['AWS_ACCESS_KEY_ID']}', "
        f"secret_access_key = '{KEYS['AWS_SECRET_ACCESS_KEY']}'"
    )
    views = statements("views", "clickhouse")
    assert views.count("FROM s3(netwatch,") == 1
    for statement in views.replace("FROM s3(netwatch,", "FROM s3Cluster('one', netwatch,").split(";\n\n"):
        opened.query(statement)
    yield opened
    opened.close()


def test_each_question_is_planned_for_the_cluster(session: Any) -> None:
    for name, question in questions("clickhouse").items():
        plan = str(session.query(f"EXPLAIN {question.sql}", params=SPAN))
        assert re.findall(r"ReadFrom\w+", plan), name
        assert set(re.findall(r"ReadFrom\w+", plan)) == {"ReadFromCluster"}, name


def test_a_host_is_asked_to_fetch_and_filter(session: Any, host: Host) -> None:
    for question in questions("clickhouse").values():
        with pytest.raises(RuntimeError):
            session.query(question.sql, params=SPAN)
    assert host.asked()
    for statement in host.asked():
        assert statement.count("SELECT") == 1, "a share of it only, and nothing that looks at the others' shares"
        alone = statement.replace("s3Cluster('one', netwatch,", "s3(netwatch,")
        assert alone != statement
        assert str(session.query(f"SELECT count() FROM ({alone})")).strip() == str(2 * LINES), statement
