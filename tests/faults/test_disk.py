"""FAULTS.md row 9, live: the disk fails, is full, or becomes read-only while the writer seals or recovers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from netwatch.storage.files import Files
from tests.faults.clients import Clients
from tests.faults.conftest import NewExt4
from tests.faults.disks import Tmpfs
from tests.faults.strace import injected
from tests.system.conftest import Serve
from tests.system.server import GIVE_UP_S, Server, report, wait_until

RENAMES = "rename,renameat,renameat2"
FAILING_SEALS = {
    "the end of the frame is not synced, EIO": ["fdatasync:error=EIO"],
    "no directory can be made, ENOSPC": ["mkdirat:error=ENOSPC", "openat:error=ENOSPC"],
    "it cannot be renamed, EIO": [f"{RENAMES}:error=EIO"],
    "its new name is not synced, EIO": ["fsync:error=EIO"],
    "the disk is read-only, EROFS": [f"{RENAMES},mkdirat,unlinkat:error=EROFS", "openat:error=EROFS"],
}
QUIET = ("--workers", "1", "--seal-after-s", "600", "--min-free-bytes", "0")


def wait_logged(server: Server, event: str, more: int = 1) -> None:
    """Return when the log has this event, ``more`` times more often than now."""
    target = len(server.logged(event)) + more
    is_logged = wait_until(lambda: len(server.logged(event)) >= target or not server.is_running, GIVE_UP_S, 0.05)
    assert is_logged, server.log_text()
    assert server.is_running, server.log_text()


def is_ready(server: Server) -> bool:
    return server.ask("GET", "/readyz").status == 200


def test_row_09_a_seal_that_fails_is_finished_when_the_disk_is_well(serve: Serve) -> None:
    """By the same writer: what was acked stands in the open segment meanwhile, and clients are served again."""
    server = serve(*QUIET)
    writer = server.find_one("writer")
    acked = []

    def post(name: str) -> bool:
        if server.post(report(name)).status == 200:
            acked.append(name)
        return name in acked

    for number, (name, injections) in enumerate(FAILING_SEALS.items()):
        assert post(f"{number} sealed"), name
        sealed = len(server.sealed_files())
        with injected(writer.pid, *injections):
            server.send(signal.SIGUSR1)
            wait_logged(server, "recovery_failed", 2)
            post(f"{number} meanwhile")  # in the segment that was opened ahead, if the disk takes a write
        assert wait_until(lambda: len(server.sealed_files()) > sealed, GIVE_UP_S), name  # noqa: B023 - called at once
        assert wait_until(lambda: post(f"{number} after"), GIVE_UP_S), name  # noqa: B023 - the same
        assert wait_until(lambda: is_ready(server), GIVE_UP_S), name
    assert server.find_one("writer") == writer
    assert len(server.logged("seal_failed")) == len(FAILING_SEALS)
    server.stop()
    stored = server.stored_clients()
    assert [name for name in acked if stored.count(name) != 1] == []


def test_row_09_a_full_disk_while_it_seals(serve: Serve, tmpfs: Tmpfs) -> None:
    server = serve(*QUIET, data_dir=tmpfs.path / "data")
    writer = server.find_one("writer")
    acked = [name for name in map(str, range(20)) if server.post(report(name)).status == 200]
    assert len(acked) == 20
    fillers = [tmpfs.fill()]
    for number in range(100):  # nor has it room for another name
        try:
            fillers.append(tmpfs.path / f"filler-{number}")
            fillers[-1].touch()
        except OSError:
            break
    server.send(signal.SIGUSR1)
    wait_logged(server, "recovery_failed", 3)
    assert server.sealed_files() == []
    assert server.post(report("refused", padding_bytes=100_000)).code == "disk_full"
    assert server.ask("GET", "/livez").status == 200
    for filler in fillers:
        filler.unlink(missing_ok=True)
    assert wait_until(server.sealed_files, GIVE_UP_S)
    assert wait_until(lambda: server.post(report("after")).status == 200, GIVE_UP_S)
    assert wait_until(lambda: is_ready(server), GIVE_UP_S)
    assert server.find_one("writer") == writer
    server.stop()
    stored = server.stored_clients()
    assert [name for name in [*acked, "after"] if stored.count(name) != 1] == []


def restart_writer_on(server: Server, breaking: list[str]) -> None:
    """Kill the writer, and break its disk with a command before the supervisor can start the next."""
    os.kill(server.pid, signal.SIGSTOP)
    os.kill(server.find_one("writer").pid, signal.SIGKILL)
    try:
        assert wait_until(lambda: not subprocess.run(breaking, check=False, capture_output=True).returncode, 5)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_row_09_a_disk_that_is_read_only_while_it_recovers(serve: Serve, ext4: NewExt4) -> None:
    """The writer cannot start until the disk can be written again; the server goes on without a restart."""
    disk = ext4()
    server = serve("--workers", "1", "--ack-timeout-s", "0.5", "--min-free-bytes", "0", data_dir=disk.path / "data")
    with Clients(server) as clients:
        clients.wait_acked(50)
        restart_writer_on(server, ["mount", "-o", "remount,ro", str(disk.path)])
        wait_logged(server, "start_failed", 3)
        assert wait_until(lambda: clients.statuses[503] > 4, GIVE_UP_S)
        assert server.ask("GET", "/livez").status == 200
        assert wait_until(lambda: not is_ready(server), GIVE_UP_S)
        subprocess.run(["mount", "-o", "remount,rw", str(disk.path)], check=True)
        clients.wait_acked(50)
    assert wait_until(lambda: is_ready(server), GIVE_UP_S)
    server.stop()
    clients.audit(server)


def test_row_09_a_disk_that_fails_while_it_recovers(serve: Serve) -> None:
    server = serve("--workers", "1", "--ack-timeout-s", "0.5")
    with Clients(server) as clients:
        clients.wait_acked(50)
        with injected(server.pid, "fdatasync:error=EIO", is_followed=True):
            os.kill(server.find_one("writer").pid, signal.SIGKILL)
            wait_logged(server, "start_failed", 3)
        clients.wait_acked(50)
    server.stop()
    clients.audit(server)


@pytest.mark.parametrize("how", ["error", "shutdown"])
def test_row_09_what_was_synced_while_the_journal_was_aborted_is_there(
    how: str, ext4: NewExt4, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    """Of a plain fdatasync that returned 0 in that moment, one in twelve is gone."""
    times = 300 if full_sweeps else 40
    thinned(300, times, f"aborted journals ({how})")
    for _ in range(times):
        disk = ext4("errors=remount-ro")
        synced_bytes = synced_until(disk.cut_power if how == "shutdown" else disk.fail, disk.path)
        disk.power_on()
        assert (disk.path / "segment").stat().st_size >= synced_bytes
        disk.remove()


def synced_until(fail: Callable[[], None], path: Path) -> int:
    """How many bytes of a file below ``path`` were synced, one commit after the other, until after some ``fail``."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    files = Files(root)
    fd = files.create("segment")
    synced_bytes = 0

    def append() -> None:
        nonlocal synced_bytes
        with contextlib.suppress(OSError):
            while True:
                files.append(fd, bytes(700))
                files.sync(fd)
                synced_bytes += 700

    appending = threading.Thread(target=append)
    appending.start()
    assert wait_until(lambda: synced_bytes > 7000, GIVE_UP_S)
    fail()
    appending.join(GIVE_UP_S)
    files.close(fd)
    os.close(root)
    return synced_bytes


def test_row_09_a_disk_that_the_kernel_made_read_only(make_server: Serve, ext4: NewExt4) -> None:
    """ext4 after an error, mounted with errors=remount-ro: it can only be mounted anew, and holds what was acked."""
    disk = ext4("errors=remount-ro")
    server = make_server(*QUIET, data_dir=disk.path / "data").start()
    with Clients(server) as clients:
        clients.wait_acked(50)
        disk.fail()
        assert wait_until(lambda: server.logged("commit_failed"), GIVE_UP_S, 0.05)
        refused = clients.statuses.total()
        assert wait_until(lambda: clients.statuses.total() > refused + 4, GIVE_UP_S)
    server.send(signal.SIGTERM)
    code, left = server.wait(), server.open_files()
    disk.power_on()
    server.start()
    server.stop()
    clients.audit(server)
    assert clients.codes
    assert clients.codes.keys() <= {"disk_error", "unknown"}  # unknown: what is left of a commit cannot be cut off
    assert code == 1, "it had to leave a segment"
    assert left != []
