"""Each sealed file comes into the bucket once, unchanged, and is marked when it was seen there; nothing is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import zstandard

from netwatch.bucket import Bucket
from netwatch.cli import main
from tests.bucket.conftest import MakeData
from tests.bucket.gateway import Gateway, says
from tests.bucket.shipping import Shipping, flags, local, marked, ship, unmark
from tests.bucket.store import Store, objects
from tests.system.conftest import Serve, make_server, serve
from tests.system.server import report, wait_until

__all__ = ["make_server", "serve"]


def test_every_file_is_there_as_it_is_here_and_marked(make_data: MakeData, bucket: Bucket) -> None:
    data = make_data(5)
    before = local(data)
    assert ship(data, bucket) == 0
    assert objects(bucket) == before == local(data)
    assert marked(data) == dict.fromkeys(before, str(bucket))


def test_its_digest_stands_in_its_metadata(make_data: MakeData, bucket: Bucket) -> None:
    data = make_data(1)
    assert ship(data, bucket) == 0
    ((path, _),) = local(data).items()
    found = bucket.open().get(path, options={"head": True})
    assert found.attributes["Content-Type"] == "application/zstd"
    assert os.getxattr(data / "reports" / path, "user.netwatch.shipped").decode() == (
        f"{bucket} {found.attributes['sha256']}"
    )


def test_what_is_marked_is_not_looked_for_again(make_data: MakeData, bucket: Bucket, door: Gateway) -> None:
    data = make_data(3)
    assert ship(data, bucket, endpoint=door.endpoint) == 0
    assert door.requests.count("PUT") == 3
    door.requests.clear()
    assert ship(data, bucket, endpoint=door.endpoint) == 0
    assert door.requests == []
    make_data(1, first=3)
    assert ship(data, bucket, endpoint=door.endpoint) == 0
    assert door.requests == ["PUT", "HEAD"]
    assert objects(bucket) == local(data)


def test_a_lost_mark_costs_a_question(make_data: MakeData, bucket: Bucket) -> None:
    data = make_data(3)
    assert ship(data, bucket) == 0
    unmark(data)
    assert ship(data, bucket) == 0
    assert set(marked(data).values()) == {str(bucket)}
    assert objects(bucket) == local(data)


def test_another_bucket_gets_all(make_data: MakeData, bucket: Bucket, store: Store) -> None:
    data = make_data(2)
    other = store.bucket(f"{bucket.prefix}-other")
    assert ship(data, bucket) == ship(data, other) == 0
    assert objects(other) == objects(bucket) == local(data)


def test_again_finds_what_is_missing_there(
    make_data: MakeData, bucket: Bucket, door: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_data(4)
    assert ship(data, bucket) == 0
    bucket.open().delete([next(iter(local(data)))])
    assert ship(data, bucket, "--again", endpoint=door.endpoint) == 0
    assert door.requests.count("PUT") == 1
    assert objects(bucket) == local(data)
    assert main(flags(data, bucket, "--again")) == 2
    assert "give --once too" in capfd.readouterr().err


def test_what_another_program_put_there_is_read_and_compared(make_data: MakeData, bucket: Bucket) -> None:
    """`aws s3 sync` and rclone give a file the same name, and no digest of ours."""
    data = make_data(2)
    there = bucket.open()
    for path, content in local(data).items():
        there.put(path, content)
    assert ship(data, bucket) == 0
    assert set(marked(data).values()) == {str(bucket)}


@pytest.mark.parametrize("has_digest", [True, False])
@pytest.mark.parametrize("has_other_size", [True, False])
def test_something_else_under_the_name_is_kept_and_told(
    make_data: MakeData, bucket: Bucket, has_other_size: bool, has_digest: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_data(3)
    path, content = next(iter(local(data).items()))
    other = b"x" * (len(content) + has_other_size)
    bucket.open().put(path, other, attributes={"sha256": "0" * 64} if has_digest else None)
    assert ship(data, bucket) == 1
    assert objects(bucket) == {**local(data), path: other}
    assert marked(data) == {**dict.fromkeys(local(data), str(bucket)), path: None}
    assert '"event":"ship_conflict"' in capfd.readouterr().err
    bucket.open().delete([path])  # the operator has looked, and decided
    assert ship(data, bucket) == 0
    assert objects(bucket) == local(data)


def test_two_at_once_do_no_harm(make_data: MakeData, bucket: Bucket, tmp_path: Path) -> None:
    data = make_data(30)
    both = [Shipping(data, bucket, tmp_path / f"{number}.log") for number in (1, 2)]
    for shipping in both:
        shipping.wait_for(lambda found: found["waiting_segments"] == 0)
        assert shipping.stop() == 0
        assert "ship_conflict" not in shipping.log
    assert objects(bucket) == local(data)


def test_two_hosts_with_one_bucket(make_data: MakeData, bucket: Bucket) -> None:
    one, two = make_data(2, "one"), make_data(2, "two")
    assert ship(one, bucket) == ship(two, bucket) == 0
    assert objects(bucket) == local(one) | local(two)


def test_a_running_server_s_files_come_as_they_are_sealed(serve: Serve, bucket: Bucket, tmp_path: Path) -> None:
    server = serve("--seal-after-s", "0.2")
    shipping = Shipping(server.data_dir, bucket, tmp_path / "ship.log")
    for number in range(3):
        assert server.post(report(f"agent-{number}")).status == 200
        shipping.wait_for(lambda found, number=number: found["segments_total"] == number + 1)  # type: ignore[misc]
    found = shipping.metrics()
    assert found["waiting_segments"] == found["waiting_bytes"] == found["oldest_waiting_seconds"] == 0
    assert found["bytes_total"] == sum(map(len, local(server.data_dir).values()))
    assert found["last_success_time_seconds"] > 1e9
    assert shipping.stop() == 0
    assert objects(bucket) == local(server.data_dir)
    server.stop()


def test_a_disk_thrown_away_takes_what_was_said_to_wait_and_no_more(
    serve: Serve, bucket: Bucket, door: Gateway, tmp_path: Path
) -> None:
    server = serve("--seal-after-s", "0.2")
    shipping = Shipping(server.data_dir, bucket, tmp_path / "ship.log", endpoint=door.endpoint)
    acked = []
    for number in range(6):
        if number == 3:
            shipping.wait_for(lambda found: found["segments_total"] == 3)
            door.plan("PUT", says("503 Service Unavailable", "SlowDown"), times=10_000)
        acked.append(server.post(report(f"agent-{number}")).json["id"])
        assert wait_until(lambda number=number: len(server.sealed_files()) == number + 1, 10)  # type: ignore[misc]
    told = shipping.wait_for(lambda found: found["waiting_segments"] == 3)
    shipping.stop(signal.SIGKILL)
    server.kill()
    here = local(server.data_dir)
    shutil.rmtree(server.data_dir)
    there = objects(bucket)
    assert sum(len(here[path]) for path in here.keys() - there.keys()) == told["waiting_bytes"]
    lines = [zstandard.ZstdDecompressor().decompressobj().decompress(content) for content in there.values()]
    assert [json.loads(line)["id"] for line in lines] == acked[:3]


def test_a_bucket_that_is_away_costs_disk_and_nothing_else(
    make_data: MakeData, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(4, received_at="2025-11-22T10:24:10.123456Z")
    before = local(data)
    prune = ["prune", "--data-dir", str(data), "--retention-days", "1", "--retention-only-shipped", "yes"]
    assert ship(data, bucket, endpoint="http://127.0.0.1:1") == 1
    assert main(prune) == 0
    assert "3 files stay because they are not shipped" in capsys.readouterr().out
    assert local(data) == before
    assert ship(data, bucket) == 0
    assert main(prune) == 0
    assert len(local(data)) == 1, "the newest never goes"
    assert objects(bucket) == before


def test_what_is_deleted_meanwhile_is_forgotten(
    make_data: MakeData, bucket: Bucket, store: Store, tmp_path: Path
) -> None:
    data = make_data(3)
    nowhere = "http://127.0.0.1:1"
    shipping = Shipping(data, bucket, tmp_path / "ship.log", endpoint=nowhere)
    shipping.wait_for(lambda found: found["waiting_segments"] == 3 and found['failures_total{kind="unreachable"}'] > 0)
    shutil.rmtree(next((data / "reports").iterdir()))
    shipping.wait_for(lambda found: found["waiting_segments"] == 0)
    assert shipping.stop() == 0


def test_a_data_directory_that_goes_away_ends_it(make_data: MakeData, bucket: Bucket, tmp_path: Path) -> None:
    data = make_data(1)
    shipping = Shipping(data, bucket, tmp_path / "ship.log")
    shipping.wait_for(lambda found: found["waiting_segments"] == 0)
    shutil.rmtree(data)
    assert wait_until(lambda: shipping.process.poll() is not None, 10)
    assert shipping.process.returncode == 2
    assert "no data directory" in shipping.log


def test_a_directory_without_files_is_no_data_directory(
    bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ship(tmp_path, bucket) == 2
    assert ship(tmp_path / "nothing", bucket) == 2
    assert "Cannot open the data directory" in capfd.readouterr().err


def test_files_that_cannot_be_marked_are_not_shipped(
    make_data: MakeData, bucket: Bucket, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send all of them again at each start."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("netwatch.storage.files.Files.set_attribute", refuse)
    assert ship(make_data(1), bucket) == 1
    assert "Cannot mark files" in capfd.readouterr().err
    assert objects(bucket) == {}
