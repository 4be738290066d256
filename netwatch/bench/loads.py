"""The load: wrk as fast as it can, or a client with a rate; both are commands that print one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

_TIMEOUT_S = 10


class Load(NamedTuple):
    """What the clients saw."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    faults: dict[str, int]  # everything but answers of 200: "status 503", "connect", "timeout", …
    cpu_share: float  # of one processor, that the client itself used


class LoadFailed(Exception):
    """The client could not do its work."""


def wrk_command(url: str, bodies: Path, content_type: str, connections: int, threads: int, seconds: float) -> list[str]:
    script = str(resources.files("netwatch.bench") / "cycle.lua")
    threads = min(threads, connections)
    return [
        *("wrk", "--threads", str(threads), "--connections", str(connections), "--timeout", f"{_TIMEOUT_S}s"),
        *("--duration", f"{max(round(seconds), 1)}s", "--script", script, url, "--", str(bodies), content_type),
    ]  # fmt: skip


def rate_command(
    url: str, bodies: Path, content_type: str, connections: int, rate_per_s: float, seconds: float
) -> list[str]:
    return [
        *(sys.executable, "-m", "netwatch.bench.open_loop", url, str(bodies), content_type),
        *(str(connections), str(rate_per_s), str(seconds)),
    ]


def run(command: list[str], meanwhile: Callable[[], None], after_s: float) -> Load:
    """Run it to its end, and `meanwhile` once in another thread, so long after its start."""
    client = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert client.stdout
    timer = threading.Timer(after_s, meanwhile)
    timer.start()
    try:
        said = client.stdout.read()
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
    finally:
        timer.cancel()
        timer.join()
        if client.returncode is None:
            client.kill()
            client.wait()
        client.stdout.close()
    with contextlib.suppress(ValueError, KeyError, IndexError):
        seen = json.loads(said.splitlines()[-1])
        return Load(
            requests=seen["requests"],
            duration_s=seen["duration_s"],
            p50_ms=seen["p50_ms"],
            p99_ms=seen["p99_ms"],
            p999_ms=seen["p99.9_ms"],
            max_ms=seen["max_ms"],
            faults=seen["faults"],
            cpu_share=(usage.ru_utime + usage.ru_stime) / seen["duration_s"],
        )
    raise LoadFailed(f"{command[0]} ended with exit code {client.returncode}: {said[-500:]}")
