"""Faults at chosen system calls of processes that run: strace, attached and taken away again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.system.server import wait_until


@contextlib.contextmanager
def injected(pid: int, *injections: str, is_followed: bool = False) -> Iterator[None]:
    """Tamper with the process ``pid``, and with what it forks if ``is_followed``: ``fsync:error=EIO``, as strace says.

    The process runs as before when this ends.
    """
    expressions = [f"--inject={injection}" for injection in injections]
    names = ",".join(injection.partition(":")[0] for injection in injections)
    follow = ["-f"] if is_followed else []
    command = ["strace", "-qq", *follow, "-o", "/dev/null", "-e", f"trace={names}", *expressions, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        try:
            assert wait_until(lambda: is_traced(pid) or strace.poll() is not None, 5)
            assert strace.poll() is None, strace.stderr and strace.stderr.read()
            yield
        finally:
            strace.send_signal(signal.SIGINT)


def is_traced(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return b"TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_bytes()
    return False
