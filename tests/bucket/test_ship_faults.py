"""What networks, proxies and stores do to a shipper: it tries again, loses nothing, stores nothing wrong or twice."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from netwatch.bucket import Bucket
from tests.bucket import gateway
from tests.bucket.conftest import MakeData
from tests.bucket.gateway import Fault, Gateway
from tests.bucket.shipping import Shipping, local, marked, ship
from tests.bucket.store import NAME, Store, objects

FAULTS: dict[str, tuple[str, Fault, str | None]] = {
    "a byte flips on the way": ("PUT", gateway.flips_a_byte, "refused"),
    "stored, and the answer never comes": ("PUT", gateway.stores_and_waits(3), "timeout"),
    "late, and then stored": ("PUT", gateway.waits(1.5), "timeout"),
    "cut before": ("PUT", gateway.cuts, "unreachable"),
    "stored and cut": ("PUT", gateway.stores_and_cuts, "unreachable"),
    "409, not stored": ("PUT", gateway.says("409 Conflict", "ConditionalRequestConflict"), "missing"),
    "409, stored": ("PUT", gateway.stores_and_says("409 Conflict", "ConditionalRequestConflict"), None),
    "412, not stored": ("PUT", gateway.says("412 Precondition Failed", "PreconditionFailed"), "missing"),
    "500": ("PUT", gateway.says("500 Internal Server Error", "InternalError"), "failed"),
    "500, stored": ("PUT", gateway.stores_and_says("500 Internal Server Error", "InternalError"), "failed"),
    "503": ("PUT", gateway.says("503 Slow Down", "SlowDown"), "busy"),
    "429": ("PUT", gateway.says("429 Too Many Requests", "SlowDown"), "busy"),
    "slow": ("PUT", gateway.waits(0.5), None),
    "read back: 404": ("HEAD", gateway.says("404 Not Found", "NoSuchKey"), "missing"),
    "read back: 500": ("HEAD", gateway.says("500 Internal Server Error", "InternalError"), "failed"),
    "read back: cut": ("HEAD", gateway.cuts, "unreachable"),
    "read back: late": ("HEAD", gateway.waits(1.5), "timeout"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_tried_again(
    name: str, make_data: MakeData, bucket: Bucket, door: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    method, fault, kind = FAULTS[name]
    data = make_data(3)
    door.plan(method, fault, times=2)
    assert ship(data, bucket, endpoint=door.endpoint) == 0
    assert objects(bucket) == local(data)
    assert set(marked(data).values()) == {str(bucket)}
    said = capfd.readouterr().err
    kinds = set(re.findall(r'"event":"ship_failed".*?"kind":"(\w+)"', said))
    assert {kind} - {None} <= kinds <= {kind, "timeout"}, said  # a busy machine is late by itself
    assert "ship_conflict" not in said


def test_without_the_checksum_the_flipped_byte_is_stored(bucket: Bucket, door: Gateway) -> None:
    """Why there is one: the day on which this fails, the signature alone is enough for this store."""
    from obstore.store import S3Store

    plain = S3Store(bucket.name, prefix=bucket.prefix, endpoint=door.endpoint, client_options={"allow_http": True})
    door.plan("PUT", gateway.flips_a_byte)
    plain.put("x", b"right")
    assert objects(bucket) == {"x": b"rifht"}


def test_a_put_that_lands_after_its_retry_changes_nothing(make_data: MakeData, bucket: Bucket, door: Gateway) -> None:
    data = make_data(1)
    door.plan("PUT", gateway.waits(2.5))
    assert ship(data, bucket, endpoint=door.endpoint) == 0
    modified = next(bucket.open().list())[0]["last_modified"]
    time.sleep(2)
    assert objects(bucket) == local(data)
    assert next(bucket.open().list())[0]["last_modified"] == modified


def test_one_object_that_always_fails_holds_up_no_other(make_data: MakeData, bucket: Bucket, tmp_path: Path) -> None:
    data = make_data(12)
    path = next(iter(local(data)))
    (data / "reports" / path).chmod(0)
    (data / "reports" / path).unlink()
    (data / "reports" / path).mkdir()  # a read of it fails, whoever we are
    shipping = Shipping(data, bucket, tmp_path / "ship.log")
    shipping.wait_for(lambda found: found["segments_total"] == 11)
    assert shipping.metrics()['failures_total{kind="disk"}'] > 0
    assert shipping.metrics()["waiting_segments"] == 1
    assert shipping.stop() == 0


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_told(
    name: str, make_data: MakeData, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_data(2)
    monkeypatch.setenv(name, "hunter2")
    assert ship(data, bucket) == 1
    said = capfd.readouterr().err
    assert '"level":"error","event":"ship_refused"' in said
    assert '"kind":"denied"' in said
    assert "hunter2" not in said
    assert said.count("ship_refused") <= 2, "it is no use to try again at once"
    assert set(marked(data).values()) == {None}
    assert objects(bucket) == {}


def test_no_such_bucket_is_told_and_waited_for(
    make_data: MakeData, store: Store, bucket: Bucket, tmp_path: Path
) -> None:
    data = make_data(2)
    later = store.bucket(name="made-later")
    shipping = Shipping(data, later, tmp_path / "ship.log")
    shipping.wait_for(lambda found: found['failures_total{kind="no_bucket"}'] > 0)
    store.make_bucket("made-later")
    shipping.wait_for(lambda found: found["waiting_segments"] == 0)
    assert objects(later) == local(data)
    assert shipping.stop() == 0


def test_a_bucket_that_vanishes_and_returns(make_data: MakeData, tmp_path: Path) -> None:
    """The node is killed and started again: what was shipped stands there, what was not comes."""
    own = Store(tmp_path / "store").start()
    try:
        data, bucket = make_data(4), own.bucket("host1")
        shipping = Shipping(data, bucket, tmp_path / "ship.log", "--timeout-s", "2")
        shipping.wait_for(lambda found: found["waiting_segments"] == 0)
        own.kill()
        make_data(4, first=4)
        found = shipping.wait_for(lambda found: found['failures_total{kind="unreachable"}'] >= 3)
        assert found["waiting_segments"] == 4
        assert found["waiting_bytes"] == sum(map(len, local(data).values())) - found["bytes_total"]
        assert found["oldest_waiting_seconds"] > 0
        own.start()
        shipping.wait_for(lambda found: found["waiting_segments"] == 0)
        assert shipping.stop() == 0
        assert objects(bucket) == local(data)
    finally:
        own.kill()


def test_a_stop_does_not_wait_for_the_store(make_data: MakeData, bucket: Bucket, door: Gateway, tmp_path: Path) -> None:
    data = make_data(2)
    door.plan("PUT", gateway.waits(20), times=2)
    shipping = Shipping(data, bucket, tmp_path / "ship.log", endpoint=door.endpoint)
    shipping.wait_for(lambda _: "PUT" in door.requests)
    began_s = time.monotonic()
    assert shipping.stop() == 0
    assert time.monotonic() - began_s < 3
    assert NAME in shipping.log
