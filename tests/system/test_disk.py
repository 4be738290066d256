"""FAULTS.md rows 8 and 10, live: a disk that fills, one below its reserve, and an fdatasync that fails once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import MIB, Server, report, wait_until

DISK_BYTES = 16 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory on a disk of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a small tmpfs")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path)], check=True)
    try:
        yield path / "data"
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(directory: Path, leave_bytes: int) -> Path:
    """Take the disk's room but for so many bytes; the file that takes it."""
    path = directory / "filler"
    disk = os.statvfs(directory)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave_bytes)
    return path


def reasons(server: Server) -> list[str]:
    """Why it is not ready."""
    answer = server.ask("GET", "/readyz")
    assert (answer.status == 200) == (not answer.json["reasons"])
    return [reason["code"] for reason in answer.json["reasons"]]


def test_row_08_a_full_disk_refuses_loses_nothing_and_goes_on_by_itself(serve: Serve, small_disk: Path) -> None:
    server = serve("--min-free-bytes", "0", "--seal-after-s", "600", data_dir=small_disk)
    acked = []

    def post(name: str) -> int:
        answer = server.post(report(name, padding_bytes=400_000))
        if answer.status == 200:
            acked.append(name)
        else:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            codes.add(answer.code)
        return answer.status

    codes: set[str] = set()
    assert post("before") == 200
    filler = fill(small_disk.parent, 2 * MIB)
    refused = sum(post(f"full {number}") == 503 for number in range(30))
    assert refused > 15
    assert codes <= {"disk_full", "disk_error"}
    assert "disk_full" in codes
    assert server.ask("GET", "/livez").status == 200
    filler.unlink()
    assert wait_until(lambda: post("after") == 200, 10)
    assert wait_until(lambda: reasons(server) == [], 5)
    server.stop()
    stored = server.stored_clients()
    assert [name for name in acked if stored.count(name) != 1] == []
    assert os.listdir(server.data_dir / "quarantine") == []


def test_row_08_a_disk_that_stays_full_at_the_stop_keeps_the_open_segment(serve: Serve, small_disk: Path) -> None:
    """What could not be sealed is left for the next start, and the exit code says so."""
    server = serve("--min-free-bytes", "0", data_dir=small_disk)
    acked = [name for name in map(str, range(5)) if server.post(report(name)).status == 200]
    filler = fill(small_disk.parent, 0)
    assert server.post(report("refused", padding_bytes=400_000)).status == 503
    server.send(signal.SIGTERM)
    code = server.wait()
    if server.sealed_files():
        assert code == 0
    else:
        assert code == 1
        assert server.open_files() != []
    filler.unlink()
    server.start()
    server.stop()
    assert [client for client in server.stored_clients() if client != "refused"] == acked


def test_row_08_below_its_reserve_it_refuses_early_and_says_so(serve: Serve, small_disk: Path) -> None:
    server = serve("--min-free-bytes", "4MiB", "--workers", "1", data_dir=small_disk)
    assert server.post(report("before")).status == 200
    assert reasons(server) == []
    filler = fill(small_disk.parent, 3 * MIB)
    answer = server.post(report("refused"))
    assert (answer.status, answer.code) == (503, "disk_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert wait_until(lambda: reasons(server) == ["disk_full"], 3)
    filler.unlink()
    assert wait_until(lambda: reasons(server) == [], 3)
    assert server.post(report("after")).status == 200
    server.stop()
    assert server.stored_clients() == ["after", "before"]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_row_10_an_fdatasync_that_fails_refuses_its_group_and_the_next_is_stored(serve: Serve, nth: int) -> None:
    server = serve("--workers", "1")
    assert server.post(report("before")).status == 200
    writer = server.find_one("writer").pid
    command = [
        "strace",
        "-qq",
        "-p",
        str(writer),
        "-e",
        "trace=fdatasync",
        "-o",
        str(server.log.with_suffix(".strace")),
    ]
    with subprocess.Popen([*command, "-e", f"inject=fdatasync:error=EIO:when={nth}"]) as strace:
        try:
            assert wait_until(lambda: b"TracerPid:\t0\n" not in Path(f"/proc/{writer}/status").read_bytes(), 5)
            answers = [server.post(report(f"{number}")) for number in range(8)]
        finally:
            strace.send_signal(signal.SIGINT)
    assert [answer.status for answer in answers] == [503 if number == nth - 1 else 200 for number in range(8)]
    assert answers[nth - 1].code == "disk_error"
    assert int(answers[nth - 1].headers["retry-after"]) >= 1
    assert len(server.logged("commit_failed")) == 1
    server.stop()
    stored = server.stored_clients()
    assert len(set(stored)) == len(stored)
    assert {"before", *(f"{number}" for number in range(8) if number != nth - 1)} <= set(stored)


def test_row_08_a_full_disk_stops_no_start(serve: Serve, small_disk: Path) -> None:
    server = serve("--min-free-bytes", "0", "--seal-after-s", "600", data_dir=small_disk)
    assert server.post(report("before")).status == 200
    filler = fill(small_disk.parent, 0)
    for _ in range(3):
        server.kill()
        server.start()
        assert server.post(report("full")).code == "disk_full"
        assert wait_until(lambda: reasons(server) == ["disk_full"], 3)
    assert len(list(small_disk.glob("open/*"))) <= 2
    filler.unlink()
    assert wait_until(lambda: server.post(report("after")).status == 200, 10)
    server.stop()
    assert {"before", "after"} <= set(server.stored_clients())
    assert not list(small_disk.glob("open/*"))


def test_a_deleted_data_directory_is_said_at_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(data_dir=tmp_path / "data")
    assert server.post(report("before")).status == 200
    shutil.rmtree(tmp_path / "data")
    assert server.post(report("after")).code == "disk_error"
    assert wait_until(lambda: reasons(server) == ["disk_error"], 3)
    (tmp_path / "data" / "reports").mkdir(parents=True)  # it is another directory, and nothing is written there
    assert server.post(report("again")).code == "disk_error"
    server.send(signal.SIGTERM)
    assert server.wait() == 1


def test_row_08_retention_makes_room_and_the_server_goes_on_by_itself(serve: Serve, small_disk: Path) -> None:
    server = serve("--seal-bytes", "100KiB", "--min-free-bytes", "4MiB", "--workers", "1", data_dir=small_disk)
    for number in range(20):
        assert server.post(report(f"old {number}", padding_bytes=400_000)).status == 200
    server.stop()
    sealed = server.sealed_files()
    fill(small_disk.parent, 2 * MIB)
    server = serve(
        "--seal-bytes", "100KiB", "--min-free-bytes", "4MiB", "--retention-bytes", "1MiB", data_dir=small_disk
    )
    assert wait_until(lambda: reasons(server) == [], 10)
    assert server.post(report("new")).status == 200
    assert server.logged("files_pruned")[0]["by_age"] == 0
    text = server.ask("GET", "/metrics").body.decode()
    server.stop()
    pruned = int(text.partition('netwatch_pruned_files_total{reason="size"} ')[2].split()[0])
    left = server.sealed_files()
    assert left[:-1] == sealed[pruned:], "the oldest went, and no other"
    assert sum(path.stat().st_size for path in left[:-1]) <= MIB
    assert "new" in server.stored_clients()
