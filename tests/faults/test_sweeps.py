"""Rows 2, 9, 10 and 25: a writer killed, and a disk that fails, at every system call of its lives.

Where the same is done to the model of a disk in tests/test_storage_faults.py, this is the real one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.lives import Case, Life, Worker, cases_of, finish, first_life, second_life
from tests.writer_process import writer_house

Thinned = Callable[[int, int, str], None]


def suffer(case: Case, fault: str, life: Life, directory: Path, *, is_resent: bool) -> None:
    """A life with the fault in it, then what must hold whatever it did."""
    directory.mkdir()
    try:
        with writer_house(directory) as house:
            worker = Worker(house)
            code = life(house, worker, case.inject(fault))
            if fault == "signal=KILL":
                assert code == -signal.SIGKILL or case.may_be_missed
            finish(house, worker, is_resent=is_resent)
    except AssertionError as error:
        raise AssertionError(f"{error} with {fault} at {case}") from error


def test_row_02_row_25_a_writer_killed_at_every_system_call_of_its_recovery(
    tmp_path: Path, full_sweeps: bool, thinned: Thinned
) -> None:
    """Those of its first start, commits and seals: tests/test_writer.py, with a worker that does not give up."""
    cases = cases_of(second_life, tmp_path / "untouched")
    chosen = cases if full_sweeps else cases[:: len(cases) // 10]
    thinned(len(cases), len(chosen), "system calls of a recovery to kill the writer at")
    for number, case in enumerate(chosen):
        suffer(case, "signal=KILL", second_life, tmp_path / f"case-{number}", is_resent=True)


@pytest.mark.parametrize("life", [first_life, second_life])
@pytest.mark.parametrize(("error", "points"), [("EIO", 8), ("ENOSPC", 2), ("EROFS", 2), ("EMFILE", 2)])
def test_row_09_row_10_a_system_call_that_fails_once(
    life: Life, error: str, points: int, tmp_path: Path, full_sweeps: bool, thinned: Thinned
) -> None:
    cases = [case for case in cases_of(life, tmp_path / "untouched") if case.name != "sendto"]
    if error == "EMFILE":
        cases = [case for case in cases if case.name == "openat"]
    chosen = cases if full_sweeps else cases[:: len(cases) // points]
    thinned(len(cases), len(chosen), f"system calls that fail with {error}, {life.__name__}")
    for number, case in enumerate(chosen):
        suffer(case, f"error={error}", life, tmp_path / f"case-{number}", is_resent=True)
