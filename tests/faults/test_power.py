"""FAULTS.md row 5: the power fails, on a real ext4, at random under load and in front of every system call.

With durability `written`, the same cuts lose what was acked, so the tests see what `synced` keeps.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import NewExt4
from tests.faults.lives import Case, Life, Worker, cases_of, finish, first_life, second_life
from tests.system.conftest import Serve
from tests.system.server import Server
from tests.writer_process import writer_house

Thinned = Callable[[int, int, str], None]
LIVES = {"first start, commits and seals": first_life, "recovery": second_life}


def cut_under_load(make_server: Serve, ext4: NewExt4, rounds_total: int, *flags: str) -> tuple[Server, Clients]:
    """A server whose power is cut again and again while clients post, each time after some more acks."""
    disk = ext4()
    chance = random.Random(5)
    server = make_server("--workers", "2", "--min-free-bytes", "0", *flags, data_dir=disk.path / "data")
    clients = Clients(server, total=8, padding_bytes=2000, pause_s=0)
    for _ in range(rounds_total):
        server.start()
        with clients:
            clients.wait_acked(chance.randrange(1, 400))
            disk.cut_power()
        server.kill()
        disk.power_on()
    server.start()
    server.stop()
    return server, clients


def test_row_05_power_cuts_at_random_under_load_lose_nothing(
    make_server: Serve, ext4: NewExt4, full_sweeps: bool, thinned: Thinned
) -> None:
    rounds_total = 100 if full_sweeps else 4
    thinned(100, rounds_total, "power cuts at random under load")
    server, clients = cut_under_load(make_server, ext4, rounds_total, "--seal-bytes", "64KiB")
    clients.audit(server)
    assert set(clients.codes) <= {"disk_error", "disk_full", "unknown", "ack_timeout"}


def test_row_05_power_cuts_lose_what_was_only_written(make_server: Serve, ext4: NewExt4) -> None:
    """Or these tests could not see a loss."""
    server, clients = cut_under_load(make_server, ext4, 1, "--durability", "written")
    assert clients.acked
    assert clients.lost(server.stored()) != []


def cut_at(case: Case | None, life: Life, directory: Path, ext4: NewExt4) -> None:
    """Cut the power in front of the system call (None: at the end), start again, and audit."""
    disk = ext4()
    with writer_house(disk.path) as house:
        worker = Worker(house)
        code = life(house, worker, case.inject("signal=KILL") if case else [])
        assert case is None or case.may_be_missed or code == -signal.SIGKILL
        disk.cut_power()
        disk.power_on()
        finish(house, worker, is_resent=False)
    disk.remove()


@pytest.mark.parametrize("name", LIVES)
def test_row_05_a_power_cut_at_every_system_call(
    name: str, tmp_path: Path, ext4: NewExt4, full_sweeps: bool, thinned: Thinned
) -> None:
    life = LIVES[name]
    cases = cases_of(life, tmp_path / "untouched")
    chosen = cases if full_sweeps else cases[:: len(cases) // 10]
    thinned(len(cases), len(chosen), f"system calls of {name} to cut the power at")
    for case in (*chosen, None):
        try:
            cut_at(case, life, tmp_path, ext4)
        except AssertionError as error:
            raise AssertionError(f"{error} with the power cut at {case or 'the end'}") from error
