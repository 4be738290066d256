"""Machines to try the units on: a bare one, and ones where scripts/install has run; each test has one of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.systemd import machine
from tests.systemd.machine import CannotBoot, Machine

Boot = Callable[..., Machine]


@pytest.fixture(scope="session", params=["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of Debian 12, in the soak of Debian 13 too; skips, and says why, where none can boot."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it boots Debian in a container")
    for command, package in (("systemd-nspawn", "systemd-container"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(command) is None:
            pytest.skip(f"needs Debian's package {package}, which scripts/test installs")
    try:
        root = machine.debian(request.param)
        bare = Machine([root], tmp_path_factory.mktemp("bare"))
        try:
            bare.boot()
        finally:
            bare.end()
    except CannotBoot as error:
        pytest.skip(f"no container here: {error}")
    return root


@pytest.fixture(scope="session")
def wheelhouse(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All wheels, netwatch's own of the work tree among them."""
    return machine.wheelhouse(debian.name.partition("-")[0], tmp_path_factory.mktemp("wheels") / "wheels")


@pytest.fixture(scope="session")
def binds(wheelhouse: Path) -> list[str]:
    """What a machine sees of this host: the work tree as /src, the wheels as /wheels; neither to write."""
    return [f"--bind-ro={machine.ROOT}:/src", f"--bind-ro={wheelhouse}:/wheels"]


@pytest.fixture(scope="session")
def installed(debian: Path, binds: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/install and `systemctl enable` write on a fresh Debian, as a layer."""
    fresh = Machine([debian], tmp_path_factory.mktemp("installed"), binds)
    try:
        fresh.boot()
        fresh.run("/src/scripts/install --wheels /wheels && systemctl --quiet enable netwatch")
        fresh.power_off()
    finally:
        fresh.end()
    return fresh.upper


@pytest.fixture
def make_machine(debian: Path, binds: list[str], tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """`make_machine(*layers, binds=…)`: a machine that is not booted yet, on Debian and these layers."""
    made: list[Machine] = []

    def make(*layers: Path, more_binds: tuple[str, ...] = ()) -> Machine:
        made.append(Machine([debian, *layers], tmp_path / f"machine-{len(made)}", [*binds, *more_binds]))
        return made[-1]

    yield make
    for each in made:
        each.end()
        shutil.rmtree(each.upper, ignore_errors=True)


@pytest.fixture
def host(make_machine: Boot, installed: Path) -> Machine:
    """A booted machine on which netwatch serves."""
    booted = make_machine(installed).boot()
    booted.wait_for("systemctl is-active --quiet netwatch")
    return booted
