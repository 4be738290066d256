"""What each child process does first: its title, its session, that its parent's death ends it, and who goes first."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Final

import setproctitle

BE_PATIENT: Final = signal.SIGURG
"""Tells Gunicorn that its drain may take as long as a request's body may; by default this signal does nothing."""
_PR_SET_PDEATHSIG: Final = 1
_KILLED_FIRST: Final = 500
"""As if it held half of the machine's memory more."""


def set_title(role: str) -> None:
    """Show this process as ``netwatch: <role>``."""
    setproctitle.setproctitle(f"netwatch: {role}")


def be_killed_first() -> None:
    """Have the kernel, out of memory, kill this process before those that have not asked for it (proc(5))."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(min(score + _KILLED_FIRST, 1000)))


def follow(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the parent dies, SIGKILL included; at once if it is dead already (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGTERM)
