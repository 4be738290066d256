"""What every test rests on: a clean environment, and an honest account of what was thinned to keep the run short."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

# scripts/soak sets it. Like all of NETWATCH_…, it is taken out of the environment: a server that a test starts must
# see neither a developer's settings nor a setting that does not exist.
FULL_SWEEPS = os.environ.get("NETWATCH_SOAK") == "1"
for name in [name for name in os.environ if name.startswith("NETWATCH_")]:
    del os.environ[name]

# What starts us in the background may have these ignored, which a process that a test starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

THINNED: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FULL_SWEEPS:  # what is thinned elsewhere belongs to the soak as a whole
        for item in items:
            if "full_sweeps" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.soak)


@pytest.fixture
def full_sweeps() -> bool:
    """Whether a test runs all of its cases (scripts/soak), and not a sample that it names with `thinned`."""
    return FULL_SWEEPS


@pytest.fixture
def thinned() -> Callable[[int, int, str], None]:
    """`thinned(total, run, what)`: of `total` cases a test ran `run`; said above pytest's last line, if not all."""

    def say(total: int, run: int, what: str) -> None:
        if run < total:
            THINNED.append(f"{what}: {run} of {total}")

    return say


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes: the one that runs them says it
        session.config.workeroutput["thinned"] = THINNED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    THINNED.extend(node.workeroutput["thinned"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if THINNED:
        terminalreporter.section("thinned; scripts/soak runs all")
        for line in THINNED:
            terminalreporter.write_line(line)
