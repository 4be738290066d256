"""The keeper of one server: the process that starts it, and that says at the end what it and its descendants used.

Nothing is left out: every descendant is reaped either by its parent, whose account the kernel adds it to, or by the
keeper, to which orphans fall (it is their subreaper), and by that only at the end. What the kernel reaps for a parent
that ignores SIGCHLD would be lost; neither Gunicorn, multiprocessing nor Go does that.

It talks with its parent over its standard streams: it prints the server's pid, waits for the end of its input, which
also comes when the parent dies, sends the server SIGTERM, and prints the account as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any

from netwatch.bench.processes import descendants, write_bytes

STOP_TIMEOUT_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36


def keep(command: list[str]) -> dict[str, Any]:
    """Run `command` until the input ends; the account, or {"error": why it could not be started}."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own_bytes = write_bytes(os.getpid())
    try:
        streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
        server = os.posix_spawnp(
            command[0], command, os.environ, file_actions=streams, setsigdef=[signal.SIGINT], setsid=True
        )
    except OSError as error:
        return {"error": f"{command[0]}: {error.strerror}"}
    print(server, flush=True)
    sys.stdin.read()
    exit_code, killed = _end(server)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit_code": exit_code,
        "killed": killed,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "write_bytes": write_bytes(os.getpid()) - own_bytes,
    }


def _end(server: int) -> tuple[int, int]:
    """Send it SIGTERM and wait for the last descendant: its exit code, and how many had to be killed."""
    exit_code, killed = 0, 0
    kill_at_s = time.monotonic() + STOP_TIMEOUT_S
    # It is not reaped before here, so its pid is its own.
    os.kill(server, signal.SIGTERM)
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return exit_code, killed
        if pid == server:
            exit_code = os.waitstatus_to_exitcode(status)
        elif pid == 0:
            if time.monotonic() > kill_at_s:
                for process in descendants(os.getpid()):
                    killed += 1
                    os.kill(process.pid, signal.SIGKILL)
                kill_at_s += STOP_TIMEOUT_S
            time.sleep(0.005)


if __name__ == "__main__":
    print(json.dumps(keep(sys.argv[1:])), flush=True)
