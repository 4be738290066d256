"""Storage as a whole, with each of its system calls failing in turn, and with a crash before each.

What is demanded after every run and a clean restart: every acked line stands once in a sealed file, none stands twice,
none is altered, nothing is left in open/, and another recovery changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netwatch.storage.store import KEEP_LEFTOVER_S
from tests.doubles import (
    Client,
    Disk,
    Killed,
    everything,
    from_then_on,
    install,
    made_store,
    once,
    sealed_files,
    sealed_lines,
)

LATER_S = KEEP_LEFTOVER_S + 1
POWER_CUTS = [("lost", False), ("lost", True), ("half", False), ("zeros", True)]
NewDisk = Callable[..., Disk]
Thinned = Callable[[int, int, str], None]


@pytest.fixture
def new_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewDisk]:
    """Makes disks, each on a directory of its own that is empty or what ``fill`` makes; the one before is removed."""
    disks: list[Disk] = []
    numbers = itertools.count(1)

    def remove() -> None:
        for disk in disks:
            disk.release()
            shutil.rmtree(disk.root)
        disks.clear()

    def make(fill: Callable[[Path], None] = Path.mkdir) -> Disk:
        root = tmp_path / f"disk-{next(numbers)}"
        fill(root)
        remove()
        disks.append(install(Disk(root), monkeypatch))
        return disks[0]

    yield make
    remove()


def leave_leftover(disk: Disk, *, is_torn: bool = True) -> Client:
    """A process commits twice and dies in the third commit, half written (torn) or not synced. Who posted to it."""
    client = Client()
    store = made_store(disk.files)
    store.start(0.0)
    client.post(store, client.lines(2))
    client.post(store, client.lines(1))
    number = len(disk.calls) + 2  # after require_room's
    if is_torn:
        disk.is_write_short, disk.fail = True, once(number)
    disk.kill_at = number + 1
    with contextlib.suppress(Killed):
        client.post(store, client.lines(2, filling=400))
    assert client.unknown
    disk.is_write_short = False
    disk.kill()
    return client


def live(disk: Disk, client: Client) -> bool | None:
    """A writer's life: start over a leftover, take a resend, commit, seal when asked, by size and by age, drain.

    Whether everything was sealed; None if it could not start.
    """
    store = made_store(disk.files)
    try:
        store.start(0.0)
    except OSError:
        return None
    if store.is_recovered:
        client.resend(store)
    for now_s in (1.0, 2.0):
        client.post(store, client.lines(2), now_s)
        store.tend(now_s)
    store.seal("asked")
    store.tend(3.0)
    client.post(store, client.lines(3), 4.0)
    store.tend(4.0)
    client.post(store, client.lines(2, filling=4000), 5.0)  # more than seal_bytes
    store.tend(5.0)
    store.tend(LATER_S)  # the leftover is removed
    client.post(store, client.lines(1), 20.0)
    store.tend(20.0)
    store.tend(81.0)
    client.post(store, client.lines(2), 82.0)
    return store.close(83.0)


def restart_and_audit(disk: Disk, client: Client) -> None:
    """Nothing fails any more: start, take what is resent, drain; then look at every file."""
    store = made_store(disk.files)
    store.start(100.0)
    client.resend(store, 100.0)
    assert store.close(101.0)
    client.demand_stored(sealed_lines(disk.root))
    assert not list(disk.root.glob("open/*"))
    before = everything(disk.root)
    store = made_store(disk.files)
    store.start(200.0)
    assert store.close(201.0)
    assert everything(disk.root) == before, "another recovery changed something"


def calls_of(run: Callable[[Disk], object], disk: Disk) -> list[str]:
    """The system calls of ``run`` when nothing touches it."""
    run(disk)
    calls = list(disk.calls)
    disk.kill()
    return calls


@contextlib.contextmanager
def said_at(number: int, calls: list[str]) -> Iterator[None]:
    """Name the system call in what fails."""
    try:
        yield
    except (AssertionError, OSError) as problem:
        call = calls[number - 1] if number <= len(calls) else "the end"
        raise AssertionError(f"{problem!r} with system call {number}, {call}") from problem


def test_a_life_that_nothing_touches(new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk)
    assert live(disk, client)
    assert client.refused == []
    assert len(sealed_files(disk.root)) == 5
    assert not list(disk.root.glob("open/*"))
    client.demand_stored(sealed_lines(disk.root))
    subprocess.run(["zstd", "-tq", *sealed_files(disk.root)], check=True)


@pytest.mark.parametrize("name", ["EIO once", "ENOSPC once", "EIO from then on", "half a write once", "half a write"])
def test_every_system_call_fails_in_turn(name: str, new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk)
    calls = calls_of(lambda disk: live(disk, client), disk)
    error = errno.ENOSPC if "ENOSPC" in name else errno.EIO
    failing = once if "once" in name else from_then_on
    for number in range(1, len(calls) + 1):
        if "half" in name and not calls[number - 1].startswith("write"):
            continue
        disk = new_disk()
        client = leave_leftover(disk)
        disk.fail, disk.is_write_short = failing(number, error), "half" in name
        with said_at(number, calls):
            if live(disk, client):
                assert not list(disk.root.glob("open/*"))
            disk.kill()
            disk.is_write_short = False
            restart_and_audit(disk, client)


def die(run: Callable[[], object]) -> bool:
    """Whether ``run`` was killed before its end."""
    try:
        run()
    except Killed:
        return True
    return False


def test_row_04_a_kill_before_every_system_call(new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk)
    calls = calls_of(lambda disk: live(disk, client), disk)
    for number in range(1, len(calls) + 1):
        disk = new_disk()
        client = leave_leftover(disk)
        disk.kill_at = number
        with said_at(number, calls):
            assert die(lambda: live(disk, client))  # noqa: B023 - called at once
            disk.kill()
            restart_and_audit(disk, client)


@pytest.mark.parametrize(("tail", "are_deletions_kept"), POWER_CUTS)
def test_row_05_a_power_cut_before_every_system_call(tail: str, are_deletions_kept: bool, new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk)
    calls = calls_of(lambda disk: live(disk, client), disk)
    for number in range(1, len(calls) + 2):
        disk = new_disk()
        client = leave_leftover(disk)
        disk.kill_at = number
        with said_at(number, calls):
            assert die(lambda: live(disk, client)) == (number <= len(calls))  # noqa: B023 - called at once
            dead = disk
            disk = new_disk(lambda root: dead.after_power_cut(root, tail, are_deletions_kept=are_deletions_kept))  # noqa: B023
            restart_and_audit(disk, client)


@pytest.mark.parametrize("are_deletions_kept", [False, True])
def test_row_05_a_kill_before_every_system_call_and_a_power_cut_later(
    are_deletions_kept: bool, new_disk: NewDisk
) -> None:
    """What the killed process had not synced, the next one must sync before it rests on it."""
    disk = new_disk()
    client = leave_leftover(disk)
    calls = calls_of(lambda disk: live(disk, client), disk)
    for number in range(1, len(calls) + 1):
        disk = new_disk()
        client = leave_leftover(disk)
        disk.kill_at = number
        with said_at(number, calls):
            assert die(lambda: live(disk, client))  # noqa: B023 - called at once
            disk.kill()
            store = made_store(disk.files)
            store.start(100.0)
            client.resend(store, 100.0)
            store.tend(100.0 + LATER_S)  # the leftovers are gone now
            dead = disk
            disk = new_disk(lambda root: dead.after_power_cut(root, "lost", are_deletions_kept=are_deletions_kept))  # noqa: B023
            restart_and_audit(disk, client)


def start(disk: Disk) -> None:
    """Recover what was left."""
    store = made_store(disk.files)
    store.start(0.0)
    assert store.is_recovered


def test_row_25_killed_in_recovery_again_and_again(new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk, is_torn=False)
    number = disk.kill_at = 1
    while die(lambda: start(disk)):
        disk.kill()
        number += 1
        disk.kill_at = number
    assert number > 30
    disk.kill()
    restart_and_audit(disk, client)
    assert len(sealed_files(disk.root)) == 1, "what is resent stands in the leftover"


@pytest.mark.parametrize("is_power_cut", [False, True])
def test_row_25_a_crash_in_recovery_and_in_the_next(
    is_power_cut: bool, new_disk: NewDisk, full_sweeps: bool, thinned: Thinned
) -> None:
    disk = new_disk()
    leave_leftover(disk, is_torn=False)
    calls = calls_of(start, disk)
    pairs = list(itertools.product(range(1, len(calls) + 1), repeat=2))
    chosen = pairs if full_sweeps else pairs[::13]
    thinned(len(pairs), len(chosen), "pairs of crashes in two recoveries")
    for pair in chosen:
        disk = new_disk()
        client = leave_leftover(disk, is_torn=False)
        with said_at(pair[0], calls):
            for number in pair:
                disk.kill_at = number
                die(lambda: start(disk))  # noqa: B023 - called at once
                if is_power_cut:
                    dead = disk
                    disk = new_disk(lambda root: dead.after_power_cut(root, "zeros", are_deletions_kept=True))  # noqa: B023
                disk.kill()
            restart_and_audit(disk, client)


def test_row_10_a_sync_that_failed_is_never_tried_again_on_that_file(new_disk: NewDisk) -> None:
    disk = new_disk()
    client = leave_leftover(disk)
    calls = calls_of(lambda disk: live(disk, client), disk)
    syncs = [number for number, call in enumerate(calls, 1) if call.startswith("fdatasync")]
    assert len(syncs) > 10
    for number in syncs:
        disk = new_disk()
        client = leave_leftover(disk)
        disk.fail = once(number)
        with said_at(number, calls):
            live(disk, client)
            assert disk.calls[number - 1].startswith("fdatasync")
            assert disk.calls[number - 1] not in disk.calls[number:] or "recovering" in disk.calls[number - 1]
            dead = disk
            disk = new_disk(lambda root: dead.after_power_cut(root, "lost", are_deletions_kept=True))  # noqa: B023
            restart_and_audit(disk, client)
